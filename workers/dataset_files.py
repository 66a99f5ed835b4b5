"""The files of a job as prepared datasets: read from the artifact store, kept with the derived data.

With `data.corpus` and `data.queries` they are relevance files, and their rows are made of all three.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from api_schemas.errors import LikenessError
from api_schemas.methods import DataOptions
from encoders.prompts import Prompts
from encoders.tokenizer import TextTokenizer
from storage import files
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.manifests import sha256
from storage.settings import StorageSettings
from workers.adapters import NoTokenizer
from workers.data import beir, validation
from workers.data.derived import cache_key, cached
from workers.data.formats import ReadOptions
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.data.validation import FileReport
from workers.untokenized import Untokenized


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
        tokenizer: TextTokenizer | NoTokenizer | Untokenized,
        options: DataOptions,
        prompts: Prompts | None = None,
    ) -> None:
        self._derived = settings.derived_dir
        self._artifacts = ArtifactStore(settings.artifacts_dir)
        self._database = database
        self._tokenizer = tokenizer
        self._options = options
        self._prompts = prompts or Prompts()
        self.read_options = replace(read_options(options), scratch=self._artifacts.unfinished)

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
                options=self._decisive_options(),
                tokenizer=self._prompts.fingerprint(self._tokenizer.fingerprint),
                limit=limit,
            ),
            lambda: self.all_rows(stored),
            tokenizer=self._tokenizer,
            limit=limit,
            prompts=self._prompts,
            progress=progress,
            should_stop=should_stop,
        )

    def validated(
        self,
        stored: StoredDataset,
        *,
        progress: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> FileReport:
        """Judge a verified file as the job says that it is to be read. Raises StoppedError, OSError."""
        if self._texts is None:
            return validation.validate(
                stored.path,
                filename=stored.filename,
                options=self.read_options,
                progress=progress,
                should_stop=should_stop,
            )

        def on_read(_: Path, position: int) -> None:
            if progress is not None:
                progress(position)
            if should_stop is not None and should_stop():
                raise validation.StoppedError

        corpus, queries = self._texts
        return beir.validate(
            corpus.path,
            queries.path,
            stored.path,
            filename=stored.filename,
            on_read=on_read,
            scratch=self._artifacts.unfinished,
        )

    def rows(self, stored: StoredDataset, numbers: Collection[int]) -> dict[int, Row]:
        """Some rows of a verified file as they were sent, by number from 0; read through up to the last of them."""
        found = zip(range(max(numbers, default=-1) + 1), self.all_rows(stored), strict=False)
        return {number: row for number, row in found if number in numbers}

    def all_rows(self, stored: StoredDataset) -> Iterator[Row]:
        """All rows of a verified file as they were sent. Raises DatasetError for one that can't be used."""
        if self._texts is None:
            return validation.rows(stored.path, filename=stored.filename, options=self.read_options)
        corpus, queries = self._texts
        return beir.rows(
            corpus.path, queries.path, stored.path, filename=stored.filename, scratch=self._artifacts.unfinished
        )

    @cached_property
    def _texts(self) -> tuple[StoredDataset, StoredDataset] | None:
        """The corpus and the queries that the relevance files of a job name texts of. Raises as `verified` does."""
        if self._options.corpus is None or self._options.queries is None:
            return None
        return self.verified(self._options.corpus), self.verified(self._options.queries)

    def _decisive_options(self) -> dict[str, Any]:
        """All that decides, besides a file's own bytes, which rows are made of it."""
        texts = [] if self._texts is None else [each.sha256 for each in self._texts]
        return {**self._options.model_dump(include={"format", "columns"}), "texts": texts}


def read_options(options: DataOptions) -> ReadOptions:
    """What a job says of its files, as the readers take it. Raises ValueError for columns that make no format."""
    return ReadOptions(format=None if options.format == "auto" else options.format, columns=dict(options.columns or {}))
