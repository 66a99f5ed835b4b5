"""What happens to a job between its files' validation and the queue of those who train.

Its files are read and tokenized here, on a machine without an accelerator, and what would make the training pointless
is told before one is taken: rows that can't be used, pairs that aren't there, batches that can't be formed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api_schemas.defaults import batch_size_to_check, resolve
from api_schemas.errors import LikenessError
from api_schemas.inputs import wrong_file
from api_schemas.jobs import OpenAIHyperparameters
from api_schemas.methods import Method
from encoders import registry
from encoders.errors import EncoderError
from encoders.folder import packs
from encoders.prompts import Prompts
from encoders.tokenizer import TextTokenizer
from storage import disk, job_files, job_moves, preparations
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.job_base import JobBase
from storage.settings import StorageSettings
from storage.tables import Job
from workers import model_options, scratch_base
from workers.adapters import NoTokenizer, WrongAdapterError, check_dimension, dimension_of, tokenizer_of, with_form
from workers.base_models import base_of
from workers.data import validation
from workers.data.overlap import MOST_OF_IT, rows_in_training
from workers.data.preparation import NoRowsError, PreparationStopped
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.data.scores import FOR_EVALUATION
from workers.dataset_files import DatasetFiles, StoredDataset
from workers.evaluation.plan import NotEvaluableError, split_for
from workers.patience import patiently
from workers.prompts import prompts_asked, prompts_of
from workers.search.selection import searchable
from workers.training.batches import NoBatchError
from workers.training.mining import MINED_FORMATS
from workers.training.mixing import Mixture
from workers.untokenized import Untokenized

log = structlog.get_logger("likeness.preparing")

_LOOK_EVERY_SECONDS = 0.5
_TELL_EVERY_SECONDS = 10.0
_DIRECTED = ("pairs", "triplets", "vector_pairs")


class NotTrainableError(Exception):
    """The job can't be trained; `code` and the message are for whoever created it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def prepare(settings: StorageSettings, database: Database, job_id: str, stop: threading.Event) -> None:
    """Prepare the files of a job, and queue it or fail it. Does nothing for a job that isn't in preparation.

    Once `stop` is set, the job is given back: another worker begins again, and this beginning doesn't count. Whoever
    calls holds the claim on the job.
    """
    with database.session_across_teams() as session:
        job = preparations.begin(session, job_id)
    if job is None:
        log.info("delivery_ignored", reason="the job is not in preparation")
        return
    try:
        method = _Preparation(settings, database, job, stop).run()
    except PreparationStopped:
        log.info("preparation_stopped", reason="the worker stops" if stop.is_set() else "the job is over")
        if stop.is_set():
            begun = job.preparations_begun
            _patiently(database, lambda session: preparations.give_back(session, job_id, begun=begun))
    except (NotTrainableError, LikenessError) as refusal:
        _fail(database, job_id, refusal.code, str(refusal))
    except (validation.DatasetError, NoRowsError) as refusal:
        _fail(database, job_id, "file_invalid", str(refusal))
    except (NoBatchError, WrongAdapterError, NotEvaluableError) as refusal:
        _fail(database, job_id, "invalid_value", str(refusal))
    except EncoderError as error:
        _fail(database, job_id, "weights_unavailable", str(error))
    except FileNotFoundError as error:
        gone = f"A file of this job is gone from the artifact store: {error.filename}"
        _fail(database, job_id, "training_file_missing", gone)
    except OperationalError:  # PostgreSQL's absence says nothing of the job; it is prepared again, but only so often
        raise
    except Exception as error:  # the edge of the process: whatever it is, another beginning would meet it again
        log.exception("preparation_failed", reason=type(error).__name__)
        if disk.is_full(error) or disk.is_failing(error):
            _pause(database, job_id, error)
        else:
            _fail(database, job_id, *_why(error))
    else:
        _patiently(database, lambda session: preparations.finish(session, job_id, method))


def _fail(database: Database, job_id: str, code: str, message: str) -> None:
    log.warning("job_failed", code=code, reason=message)
    _patiently(database, lambda session: preparations.refuse(session, job_id, code, message))


def _pause(database: Database, job_id: str, error: Exception) -> None:
    """Leave a job on a disk that is full or fails until somebody has seen to that."""
    message = "Paused because the disk of the data directory failed while the files were prepared. See to the disk"
    if disk.is_full(error):
        message = (
            "Paused because the disk was full while the files were prepared. Free space in the data directory, for "
            "instance by deleting files and models that nobody needs"
        )
    _patiently(database, lambda session: preparations.pause(session, job_id, message))


def _patiently(database: Database, write: Callable[[Session], None]) -> None:
    def work() -> None:
        with database.session_across_teams() as session:
            write(session)

    patiently(work)


def _why(error: Exception) -> tuple[str, str]:
    """A code and a sentence for what nobody expected."""
    if isinstance(error, MemoryError):
        return "out_of_memory", "Preparing the files needs more memory than the worker has. Split them, then try again."
    return (
        "preparation_crashed",
        f"Preparing the files ended in an error that was not expected ({type(error).__name__}). This is a defect of "
        "the service: please report it with the worker's log.",
    )


def _say_nothing(message: str, *, level: job_moves.Level = "info") -> None:
    """For what is decided twice, and said the second time."""


class _Preparation:
    """One job's preparation, from its files to its method without any `auto`."""

    def __init__(self, settings: StorageSettings, database: Database, job: Job, stop: threading.Event) -> None:
        self._settings = settings
        self._database = database
        self._job = job
        self._stop = stop
        self._method = Method(**job.method)
        self._verified: dict[str, StoredDataset] = {}
        self._looked = self._told = time.monotonic()
        self._over = False

    def run(self) -> Method:
        """Raises what `prepare` knows."""
        folder = self._folder()
        tokenizer = tokenizer_of(self._job, folder)
        self._check_model(folder)
        files = self._dataset_files(tokenizer, prompts_of(self._job, self._method.contrastive.model, folder))
        asked = self._method.contrastive.hyperparameters.max_seq_length
        limit = min(asked, tokenizer.max_seq_length) if isinstance(asked, int) else tokenizer.max_seq_length
        training = self._training(files, limit)
        held_out = self._job.validation_file
        validation = self._prepared(files, held_out, limit) if held_out else None
        self._check_no_scores(training)
        method = self._resolved(training, folder)
        self._check_mixture(training)
        if self._job.reads == "vectors":
            method = with_form(method, folder, training[0])
        held_out_rows = [] if validation is None else [validation]
        for each in [*training, *held_out_rows]:
            self._check_format(each, method)
        for each in held_out_rows:
            if training[0].vectors is not None:
                check_dimension(dimension_of(training[0]), each, "The training file")
            self._check_overlap(training, each)
        method, split = split_for(method, training, validation, self._job.seed, asked=self._method, say=self._say)
        method = searchable(method, split, training, self._job.seed, say=self._say)
        with_a_loss = [each for each in held_out_rows if each.scores is None]
        for each in [*(split.training if split else training), *with_a_loss]:
            self._check_batches(each, method)
        return method

    def _check_model(self, folder: Path | None) -> None:
        if self._job.reads == "vectors" or folder is None:
            return
        if reason := model_options.reason_against(self._method.contrastive.model, folder):
            raise NotTrainableError("invalid_value", f"`method.contrastive.model`: {reason}")

    def _dataset_files(
        self, tokenizer: TextTokenizer | NoTokenizer | Untokenized, prompts: Prompts | None = None
    ) -> DatasetFiles:
        try:
            return DatasetFiles(self._settings, self._database, tokenizer, self._method.contrastive.data, prompts)
        except ValueError as error:
            raise NotTrainableError("invalid_value", f"`method.contrastive.data`: {error}") from error

    def _folder(self) -> Path | None:
        """Where the job's base model lies, of which only tokenizer or shape are read here; None for a new adapter."""
        if self._job.model == registry.SCRATCH:
            return self._from_scratch()
        return base_of(self._job, self._settings, self._database).folder

    def _from_scratch(self) -> Path:
        """The tokenizer and the untrained weights of this job, made now unless an earlier beginning has made them."""
        base = JobBase(ArtifactStore(self._settings.artifacts_dir), self._job.id)
        if base.is_whole():
            return base.folder
        files = self._dataset_files(Untokenized())
        sources = [
            scratch_base.Source(self._rows(files, file_id), data)
            for file_id, data in zip(job_files.training_ids(self._job), self._trained_on(files), strict=True)
        ]
        model = self._method.contrastive.model
        assert model.scratch is not None  # noqa: S101 (the job was created with it)
        prompts = prompts_asked(model) or Prompts()
        with base.publishing() as folder:
            made = scratch_base.make(folder, sources, prompts, model.scratch, seed=self._job.seed)
        self._say(made.told(), level="info" if made.has_pieces else "warn")
        return base.folder

    def _trained_on(self, files: DatasetFiles) -> Sequence[Prepared]:
        """The training files before there are tokens, without the rows that will be held out. Raises as `run` does."""
        training = self._training(files, Untokenized.max_seq_length)
        self._check_no_scores(training)
        method = self._resolved(training, None)
        self._check_mixture(training)
        for each in training:
            self._check_format(each, method)
        if self._job.validation_file is not None:
            return training
        _, split = split_for(method, training, None, self._job.seed, asked=self._method, say=_say_nothing)
        return split.training if split else training

    def _rows(self, files: DatasetFiles, file_id: str) -> Iterator[Row]:
        """All rows of a file, as long as the job is not over. Raises PreparationStopped."""
        for row in files.all_rows(self._stored(files, file_id)):
            if self._is_over():
                raise PreparationStopped
            yield row

    def _training(self, files: DatasetFiles, limit: int) -> list[Prepared]:
        return [self._prepared(files, file_id, limit) for file_id in job_files.training_ids(self._job)]

    def _prepared(self, files: DatasetFiles, file_id: str, limit: int) -> Prepared:
        return files.prepared(
            self._stored(files, file_id),
            limit=limit,
            progress=self._telling("Tokenized {:,} rows" if limit > 1 else "Read {:,} rows"),
            should_stop=self._is_over,
        )

    def _stored(self, files: DatasetFiles, file_id: str) -> StoredDataset:
        """A file that is as it was sent, and whose rows can be used as the job reads them; looked at once."""
        if file_id not in self._verified:
            stored = files.verified(file_id)
            if not self._method.contrastive.data.as_uploaded:
                self._validate(files, stored)
            self._verified[file_id] = stored
        return self._verified[file_id]

    def _validate(self, files: DatasetFiles, stored: StoredDataset) -> None:
        """Judge the file as the job says that it is to be read; when it was uploaded nobody had said so."""
        try:
            report = files.validated(
                stored, progress=self._telling("Validated {:,} bytes of a file"), should_stop=self._is_over
            )
        except validation.StoppedError:
            raise PreparationStopped from None
        if not report.usable:
            raise NotTrainableError("file_invalid", f"{stored.filename}: {report.summary}")

    def _resolved(self, training: Sequence[Prepared], folder: Path | None) -> Method:
        older = self._job.openai_hyperparameters
        openai = OpenAIHyperparameters(**older) if older else None
        pads = self._job.reads == "texts" and folder is not None and not packs(folder)
        return resolve(
            self._method,
            openai,
            rows=sum(map(len, training)),
            max_seq_length=self._job.max_seq_length,
            split_rows=len(training[0]),
            pads=pads,
        )

    def _check_no_scores(self, training: Sequence[Prepared]) -> None:
        """Raises NotTrainableError if rows were to be trained on that may be unlike."""
        for file_id, data in zip(job_files.training_ids(self._job), training, strict=True):
            if data.scores is not None:
                raise NotTrainableError("pairs_with_score", f"The training file {file_id}: {FOR_EVALUATION}")

    def _check_mixture(self, training: Sequence[Prepared]) -> None:
        """Raises NotTrainableError if one encoder can't read all of the files."""
        widths = {None if data.vectors is None else data.vectors.shape[1] for data in training}
        if len(widths) > 1:
            raise NotTrainableError(
                "invalid_value",
                "`method.contrastive.data.additional_training_files`: some files hold texts and others vectors, or "
                "vectors of another dimension. Train on them in jobs of their own.",
            )

    def _check_format(self, data: Prepared, method: Method) -> None:
        """Raises NotTrainableError if the model or the loss is not for rows like these."""
        wrong = wrong_file(self._job.model, self._job.reads, data.format)
        if wrong is not None:
            raise NotTrainableError("invalid_value", wrong)
        if data.scores is not None:
            return  # what follows is about training
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
        if method.contrastive.hard_negatives is not None and data.format not in MINED_FORMATS:
            raise NotTrainableError(
                "invalid_value",
                "`method.contrastive.hard_negatives` are mined for anchors that have answers, in pairs and triplets, "
                f"and the rows of this file are {data.format}. Leave it out.",
            )

    def _check_batches(self, data: Prepared, method: Method) -> None:
        """Raises NoBatchError if no step can be taken on the data."""
        batch_size = batch_size_to_check(method, data.row_count)
        Mixture([data], batch_size=batch_size, seed=self._job.seed, epochs=1, max_steps=1)

    def _check_overlap(self, training: Sequence[Prepared], validation: Prepared) -> None:
        """Raises NotTrainableError if most rows of the validation file are made of training texts."""
        known = rows_in_training(training, validation)
        where = "training file" if len(training) == 1 else "training files"
        if known > MOST_OF_IT * len(validation):
            raise NotTrainableError(
                "evaluation_in_training",
                f"{known} of the validation file's {len(validation)} rows stand in the {where}, so it "
                "would measure memory. Take rows that are not trained on.",
            )
        if known:
            self._say(
                f"{known} of the validation file's {len(validation)} rows stand in the {where}; on these it "
                "measures memory. Take them out of one of the two.",
                level="warn",
            )

    def _say(self, message: str, *, level: job_moves.Level = "info") -> None:
        job_id, key = self._job.id, secrets.token_hex(8)
        _patiently(self._database, lambda session: preparations.record(session, job_id, message, level=level, key=key))

    def _telling(self, sentence: str) -> Callable[[int], None]:
        """Says now and then, in the job's events, how far it is."""

        def tell(done: int) -> None:
            if time.monotonic() - self._told >= _TELL_EVERY_SECONDS:
                self._told = time.monotonic()
                self._say(sentence.format(done))

        return tell

    def _is_over(self) -> bool:
        """Whether to stop: the worker does, or the job has been cancelled, which is looked up twice a second."""
        if self._stop.is_set():
            return True
        if not self._over and time.monotonic() - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            try:
                with self._database.session_across_teams() as session:
                    self._over = preparations.unprepared(session, self._job.id) is None
            except OperationalError as error:  # the next look will tell
                log.warning("job_not_looked_up", reason=type(error).__name__)
        return self._over
