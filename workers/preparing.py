"""What happens to a job between its files' validation and the queue of those who train.

Its files are read and tokenized here, on a machine without an accelerator, and what would make the training pointless
is told before one is taken: rows that can't be used, pairs that aren't there, batches that can't be formed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from api_schemas.defaults import resolve
from api_schemas.errors import LikenessError
from api_schemas.jobs import Method, OpenAIHyperparameters
from encoders import registry
from encoders.errors import EncoderError
from encoders.prompts import Prompts
from encoders.tokenizer import TextTokenizer
from storage import jobs, models
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.settings import StorageSettings
from storage.tables import Job
from workers import model_options
from workers.data import validation
from workers.data.overlap import MOST_OF_IT, rows_in_training
from workers.data.preparation import NoRowsError, PreparationStopped
from workers.data.prepared import Prepared
from workers.dataset_files import DatasetFiles, StoredDataset
from workers.prompts import prompts_of
from workers.training.batches import NoBatchError
from workers.training.mixing import Mixture

log = structlog.get_logger("likeness.preparing")

_LOOK_EVERY_SECONDS = 1.0
_TELL_EVERY_SECONDS = 10.0
_DIRECTED = ("pairs", "triplets", "vector_pairs")


class NotTrainableError(Exception):
    """The job can't be trained; `code` and the message are for whoever created it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def prepare(settings: StorageSettings, database: Database, job_id: str) -> None:
    """Prepare the files of a job, and queue it or fail it. Does nothing for a job that isn't in preparation."""
    with database.session_across_teams() as session:
        job = jobs.in_preparation(session, job_id)
    if job is None:
        log.info("delivery_ignored", reason="the job is not in preparation")
        return
    try:
        method = _Preparation(settings, database, job).run()
    except PreparationStopped:
        log.info("preparation_stopped", reason="the job is over")
        return
    except (NotTrainableError, LikenessError) as refusal:
        _fail(database, job_id, refusal.code, str(refusal))
    except (validation.DatasetError, NoRowsError) as refusal:
        _fail(database, job_id, "file_invalid", str(refusal))
    except NoBatchError as refusal:
        _fail(database, job_id, "invalid_value", str(refusal))
    except EncoderError as error:
        _fail(database, job_id, "weights_unavailable", str(error))
    except FileNotFoundError as error:
        gone = f"A file of this job is gone from the artifact store: {error.filename}"
        _fail(database, job_id, "training_file_missing", gone)
    else:
        with database.session_across_teams() as session:
            jobs.prepared(session, job_id, method)


def _fail(database: Database, job_id: str, code: str, message: str) -> None:
    log.warning("job_failed", code=code, reason=message)
    with database.session_across_teams() as session:
        jobs.not_preparable(session, job_id, code, message)


class _Preparation:
    """One job's preparation, from its files to its method without any `auto`."""

    def __init__(self, settings: StorageSettings, database: Database, job: Job) -> None:
        self._settings = settings
        self._database = database
        self._job = job
        self._method = Method(**job.method)
        self._looked = self._told = time.monotonic()
        self._over = False

    def run(self) -> Method:
        """Raises what `prepare` knows."""
        folder = self._folder()
        tokenizer = TextTokenizer.of_folder(folder)
        self._check_model(folder)
        files = self._dataset_files(tokenizer, prompts_of(self._method.contrastive.model, folder))
        asked = self._method.contrastive.hyperparameters.max_seq_length
        limit = tokenizer.max_seq_length if asked == "auto" else min(asked, tokenizer.max_seq_length)
        prepared = {file_id: self._prepared(files, file_id, limit) for file_id in self._file_ids()}
        method = self._resolved(prepared[self._job.training_file], tokenizer)
        for each in prepared.values():
            self._check(each, method)
        if self._job.validation_file:
            self._check_overlap(prepared[self._job.training_file], prepared[self._job.validation_file])
        return method

    def _check_model(self, folder: Path) -> None:
        if reason := model_options.reason_against(self._method.contrastive.model, folder):
            raise NotTrainableError("invalid_value", f"`method.contrastive.model`: {reason}")

    def _dataset_files(self, tokenizer: TextTokenizer, prompts: Prompts) -> DatasetFiles:
        try:
            return DatasetFiles(self._settings, self._database, tokenizer, self._method.contrastive.data, prompts)
        except ValueError as error:
            raise NotTrainableError("invalid_value", f"`method.contrastive.data`: {error}") from error

    def _file_ids(self) -> list[str]:
        return [file_id for file_id in (self._job.training_file, self._job.validation_file) if file_id]

    def _folder(self) -> Path:
        """Where the job's base model lies; only its tokenizer is read here."""
        with self._database.session(self._job.team_id) as session:
            tuned = models.find(session, self._job.model)
        if tuned is not None:
            return ArtifactStore(self._settings.artifacts_dir).model(tuned.artifact)
        return registry.locate(self._job.model, self._settings.base_models_dir)

    def _prepared(self, files: DatasetFiles, file_id: str, limit: int) -> Prepared:
        stored = files.verified(file_id)
        if not self._method.contrastive.data.as_uploaded:
            self._validate(files, stored)
        return files.prepared(
            stored, limit=limit, progress=self._telling("Tokenized {:,} rows"), should_stop=self._is_over
        )

    def _validate(self, files: DatasetFiles, stored: StoredDataset) -> None:
        """Judge the file as the job says that it is to be read; when it was uploaded nobody had said so."""
        try:
            report = validation.validate(
                stored.path,
                filename=stored.filename,
                options=files.read_options,
                progress=self._telling("Validated {:,} bytes"),
                should_stop=self._is_over,
            )
        except validation.StoppedError:
            raise PreparationStopped from None
        if not report.usable:
            raise NotTrainableError("file_invalid", f"{stored.filename}: {report.summary}")

    def _resolved(self, training: Prepared, tokenizer: TextTokenizer) -> Method:
        older = self._job.openai_hyperparameters
        openai = OpenAIHyperparameters(**older) if older else None
        return resolve(self._method, openai, rows=len(training), max_seq_length=tokenizer.max_seq_length)

    def _check(self, data: Prepared, method: Method) -> None:
        """Raises NotTrainableError or NoBatchError if no step can be taken on the data."""
        if data.vectors is not None:
            raise NotTrainableError("invalid_value", "The file holds vectors, and the model reads texts.")
        if method.contrastive.loss.symmetric is not None and data.format not in _DIRECTED:
            raise NotTrainableError(
                "invalid_value",
                "`method.contrastive.loss.symmetric` says in which direction the pairs of a file are compared, and the "
                f"rows of this one are {data.format}, which are all compared with one another. Leave it out.",
            )
        frozen = method.contrastive.model.train == "projection"
        if data.format == "texts" and frozen and method.contrastive.data.view == "dropout":
            raise NotTrainableError(
                "invalid_value",
                "A frozen encoder has no dropout, so the two views of a text would be one. Set "
                "`method.contrastive.data.view` to deletion or span.",
            )
        batch_size = method.contrastive.hyperparameters.batch_size
        assert batch_size != "auto"  # noqa: S101 (resolved)
        Mixture([data], batch_size=batch_size, seed=self._job.seed, epochs=1, max_steps=1)

    def _check_overlap(self, training: Prepared, validation: Prepared) -> None:
        """Raises NotTrainableError if most rows of the validation file are made of training texts."""
        known = rows_in_training(training, validation)
        if known > MOST_OF_IT * len(validation):
            raise NotTrainableError(
                "evaluation_in_training",
                f"{known} of the validation file's {len(validation)} rows stand in the training file, so its loss "
                "would measure memory. Take rows that are not trained on.",
            )
        if known:
            self._say(
                f"{known} of the validation file's {len(validation)} rows stand in the training file; on these its "
                "loss measures memory. Take them out of one of the two.",
                level="warn",
            )

    def _say(self, message: str, *, level: jobs.Level = "info") -> None:
        with self._database.session_across_teams() as session:
            jobs.record_preparation(session, self._job.id, message, level=level)

    def _telling(self, sentence: str) -> Callable[[int], None]:
        """Says now and then, in the job's events, how far it is."""

        def tell(done: int) -> None:
            if time.monotonic() - self._told >= _TELL_EVERY_SECONDS:
                self._told = time.monotonic()
                self._say(sentence.format(done))

        return tell

    def _is_over(self) -> bool:
        """Whether the job has been cancelled meanwhile; looked up once a second."""
        if not self._over and time.monotonic() - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            with self._database.session_across_teams() as session:
                self._over = jobs.in_preparation(session, self._job.id) is None
        return self._over
