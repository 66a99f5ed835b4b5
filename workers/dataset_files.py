"""The files of a job as prepared datasets: read from the artifact store, kept with the derived data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from api_schemas.errors import LikenessError
from api_schemas.jobs import DataOptions
from encoders.prompts import Prompts
from encoders.tokenizer import TextTokenizer
from storage import files
from storage.artifacts import ArtifactStore, sha256
from storage.database import Database
from storage.settings import StorageSettings
from workers.data import validation
from workers.data.derived import cache_key, cached
from workers.data.formats import ReadOptions
from workers.data.prepared import Prepared


@dataclass(frozen=True)
class StoredDataset:
    """An uploaded file: where its bytes lie, what they hash to, and what the sender called it."""

    path: Path
    sha256: str
    filename: str


class DatasetFiles:
    """Finds, checks and prepares the files of jobs, for one tokenizer."""

    def __init__(
        self,
        settings: StorageSettings,
        database: Database,
        tokenizer: TextTokenizer,
        options: DataOptions,
        prompts: Prompts | None = None,
    ) -> None:
        self._derived = settings.derived_dir
        self._artifacts = ArtifactStore(settings.artifacts_dir)
        self._database = database
        self._tokenizer = tokenizer
        self._options = options
        self._prompts = prompts or Prompts()
        self.read_options = read_options(options)

    def verified(self, file_id: str) -> StoredDataset:
        """The file, if its bytes are still those that were sent.

        Raises LikenessError `artifact_corrupt`, FileNotFoundError.
        """
        with self._database.session_across_teams() as session:
            row = files.get(session, file_id)
            stored = StoredDataset(self._artifacts.file(file_id), row.sha256, row.filename)
        if sha256(stored.path) != stored.sha256:
            raise LikenessError(
                "artifact_corrupt", f"The stored bytes of {file_id} differ from those uploaded; upload the file again."
            )
        return stored

    def prepared(
        self,
        stored: StoredDataset,
        *,
        limit: int,
        progress: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Prepared:
        """A verified file's rows, their texts tokenized and cut to `limit` tokens; made now unless they are there.

        Raises what `workers.data.preparation.prepare` raises, and DatasetError for a row that can't be used.
        """
        return cached(
            self._derived,
            cache_key(
                stored.sha256,
                options=self._options.model_dump(),
                tokenizer=self._prompts.fingerprint(self._tokenizer.fingerprint),
                limit=limit,
            ),
            lambda: validation.rows(stored.path, filename=stored.filename, options=self.read_options),
            tokenizer=self._tokenizer,
            limit=limit,
            prompts=self._prompts,
            progress=progress,
            should_stop=should_stop,
        )


def read_options(options: DataOptions) -> ReadOptions:
    """What a job says of its files, as the readers take it. Raises ValueError for columns that make no format."""
    return ReadOptions(format=None if options.format == "auto" else options.format, columns=dict(options.columns or {}))
