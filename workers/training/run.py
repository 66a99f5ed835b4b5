"""From a job to a model: the training process, from its first line to its exit code.

Run as `python -m workers.training.run JOB_ID ATTEMPT` by `workers.tasks`, which watches it.
"""

import errno
import signal
import sys
from contextlib import suppress
from pathlib import Path

import structlog
import torch
from sqlalchemy.exc import OperationalError

from api_schemas.errors import LikenessError
from api_schemas.evaluation import Evaluation
from api_schemas.jobs import Method
from encoders import export, registry
from encoders.errors import EncoderError
from encoders.text import TextEncoder
from storage import files, jobs, models
from storage.artifacts import ArtifactStore, sha256
from storage.database import Database
from storage.logs import configure_logging
from storage.settings import StorageSettings
from storage.tables import Job
from workers import exit_codes
from workers.data import validation
from workers.data.preparation import NoRowsError, PreparationStopped
from workers.data.prepared import Prepared
from workers.dataset_files import DatasetFiles
from workers.evaluation import card
from workers.evaluation.job_evaluation import JobEvaluation, Subject
from workers.evaluation.plan import split_of
from workers.patience import patiently
from workers.training import evaluation
from workers.training.batch_loss import yardstick
from workers.training.batches import NoBatchError
from workers.training.config import TrainingConfig
from workers.training.losses import NonFiniteEmbeddingsError
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import (
    NonFiniteLossError,
    OutOfMemoryInTraining,
    Trainer,
    TrainingInterrupted,
    explaining_lack_of_memory,
)

log = structlog.get_logger("likeness.training")


def main(job_id: str, number: int) -> int:
    """Train one attempt. Returns one of workers.exit_codes; 1, with a traceback in the log, for a defect."""
    settings = StorageSettings().with_running_servers()
    configure_logging(settings.log_level)
    structlog.contextvars.bind_contextvars(job=job_id, attempt=number)
    stop = _StopRequest()
    run = _Run(settings, Database(settings.required_database_url, pool_size=2), Attempt(job_id, number), stop)
    try:
        return _with_known_ends(run)
    except (jobs.StaleAttempt, TrainingInterrupted, PreparationStopped) as end:
        log.info("training_left", reason=type(end).__name__)
        return exit_codes.INTERRUPTED if isinstance(end, TrainingInterrupted) else exit_codes.STALE
    except OperationalError as error:
        log.warning("database_away", reason=type(error).__name__)
        return exit_codes.DATABASE_AWAY
    except Exception:  # the edge of the process: the supervisor fails the job, the log has the defect
        log.exception("training_crashed")
        return 1


class _StopRequest:
    """Set by SIGTERM; training looks at it between steps."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, _signal: int, _frame: object) -> None:
        self.asked = True


def _with_known_ends(run: "_Run") -> int:
    """Run, and record every failure that has a name under that name."""
    try:
        run.whole()
    except (NonFiniteLossError, OutOfMemoryInTraining) as error:
        run.fail(error.code, str(error))
    except LikenessError as error:
        run.fail(error.code, error.message)
    except EncoderError as error:
        run.fail("weights_unavailable", str(error))
    except (validation.DatasetError, NoRowsError) as error:
        run.fail("file_invalid", str(error))
    except FileNotFoundError as error:
        run.fail("training_file_missing", f"A file of this job is gone from the artifact store: {error.filename}")
    except NoBatchError as error:
        run.fail("invalid_value", str(error))
    except NonFiniteEmbeddingsError as error:
        # Training names its own step; this is the evaluation under weights that are no good.
        run.fail("non_finite_loss", f"The model can't be evaluated: {error}. Try a tenth of the learning rate.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        run.fail("disk_full", "The disk filled up; nothing was published. Free space and create the job again.")
    return exit_codes.RECORDED


class _Run:
    """The steps of a training, in order. Each tells the recorder what it does."""

    def __init__(self, settings: StorageSettings, database: Database, attempt: Attempt, stop: _StopRequest) -> None:
        self._settings = settings
        self._database = database
        self._attempt = attempt
        self._stop = stop
        self._artifacts = ArtifactStore(settings.artifacts_dir)
        self._recorder = Recorder(database, attempt)

    def whole(self) -> None:
        """Load, train, save, publish. Raises what `_with_known_ends` knows."""
        job = self._job()
        base_model, folder = self._base(job)
        encoder = TextEncoder.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
        method = Method(**job.method).contrastive
        config = TrainingConfig.from_method(method, seed=job.seed)
        datasets = DatasetFiles(self._settings, self._database, encoder.tokenizer, method.data)
        training = self._prepared(datasets, job.training_file, encoder, config)
        validation = self._prepared(datasets, job.validation_file, encoder, config) if job.validation_file else None
        split = split_of(training, validation, method.data.eval_split, job.seed)
        trainer = Trainer(encoder, [split.training if split else training], config)
        for notice in trainer.batches.notices:
            self._recorder.say(notice)
        evaluating = JobEvaluation(trainer, split, method, self._recorder, self._stop)
        evaluating.measure_base()
        held_out = split.evaluation if split else None
        before = _validation_loss(trainer, held_out)
        self._recorder.say(f"Training {job.model} on {encoder.device}: {trainer.total_steps} steps")
        evaluating.train()
        evaluation = self._evaluated(evaluating, job, datasets)
        self._compare(before, _validation_loss(trainer, held_out))
        card = self._card(job, base_model, trainer, [training, validation], evaluation)
        self._publish(job, encoder, base_model, folder, card)

    def fail(self, code: str, message: str) -> None:
        """End the job with a reason."""
        log.warning("job_failed", code=code, reason=message)

        def write() -> None:
            with self._database.session_across_teams() as session:
                jobs.fail(session, self._attempt.job_id, self._attempt.number, code, message)

        self._recorder.flush()
        patiently(write)

    def _job(self) -> Job:
        def read() -> Job:
            with self._database.session_across_teams() as session:
                return jobs.running(session, self._attempt.job_id, self._attempt.number)

        return patiently(read)

    def _base(self, job: Job) -> tuple[str, Path]:
        """The base encoder's name and the verified folder of what training starts from."""
        with self._database.session(job.team_id) as session:
            tuned = models.find(session, job.model)
        if tuned is not None:
            return tuned.base_model, self._artifacts.verify_model(tuned.artifact)
        folder = registry.locate(job.model, self._settings.base_models_dir)
        promised = registry.available(self._settings.base_models_dir)[job.model].weights_sha256
        if promised is not None:
            registry.verify_weights(folder, promised)
        return job.model, folder

    def _prepared(self, datasets: DatasetFiles, file_id: str, encoder: TextEncoder, config: TrainingConfig) -> Prepared:
        limit = min(config.max_seq_length, encoder.max_seq_length)
        data = datasets.prepared(datasets.verified(file_id), limit=limit, should_stop=self._stop)
        cut = f"; {data.truncated} of {data.items} texts are cut to {limit} tokens" if data.truncated else ""
        self._recorder.say(f"Read {len(data)} rows with {data.distinct} different texts{cut}")
        return data

    def _evaluated(self, evaluating: JobEvaluation, job: Job, datasets: DatasetFiles) -> Evaluation | None:
        """The tuned encoder beside the base, written down before the model is published."""
        source = job.validation_file or job.training_file
        subject = Subject(job.id, source, lambda numbers: datasets.rows(datasets.verified(source), numbers))
        evaluation = evaluating.result(subject)
        if evaluation is not None:
            self._recorder.evaluated(evaluation)
        return evaluation

    def _compare(self, before: float | None, after: float | None) -> None:
        if before is not None and after is not None:
            self._recorder.say(f"Validation loss: {before:.4f} before training, {after:.4f} after")

    def _card(
        self,
        job: Job,
        base_model: str,
        trainer: Trainer,
        prepared: list[Prepared | None],
        evaluation: Evaluation | None,
    ) -> card.Run:
        """What the model card is written from."""
        self._recorder.flush()
        names = {"training": job.training_file, "evaluation": job.validation_file}
        base = registry.available(self._settings.base_models_dir).get(base_model)
        with self._database.session_across_teams() as session:
            read = [
                card.DataFile(purpose, file_id, files.get(session, file_id).sha256, len(data))
                for (purpose, file_id), data in zip(names.items(), prepared, strict=True)
                if file_id and data is not None
            ]
            losses = [(step["step"], step["loss"]) for step in jobs.metrics(session, job)]
        return card.Run(
            job_id=job.id,
            base_model=base_model,
            started_from=job.model,
            license=base.license if base else None,
            dimension=trainer.encoder.dimension,
            max_seq_length=trainer.encoder.max_seq_length,
            files=read,
            method=job.method,
            seed=job.seed,
            steps=trainer.step,
            trained_tokens=trainer.trained_tokens,
            losses=losses,
            evaluation=evaluation,
        )

    def _publish(self, job: Job, encoder: TextEncoder, base_model: str, base_folder: Path, run: card.Run) -> None:
        """Save the encoder, make its folder visible, and end the job, in this order."""
        name = models.artifact_name(job)
        with self._artifacts.publishing_model(name) as folder:
            export.save(encoder, folder, base_folder=base_folder)
            card.write(run, folder)
        weights = sha256(self._artifacts.model(name) / "model.safetensors")

        def write() -> None:
            with self._database.session_across_teams() as session:
                jobs.succeed(
                    session, self._attempt.job_id, self._attempt.number, base_model=base_model,
                    weights_sha256=weights, dimension=encoder.dimension, max_seq_length=encoder.max_seq_length,
                    trained_tokens=run.trained_tokens,
                )  # fmt: skip

        try:
            patiently(write)
        except jobs.StaleAttempt:
            # Also what a second try is told when the first was committed and its answer lost.
            if self._is_registered(name):
                return
            self._artifacts.delete_model(name)
            raise

    def _is_registered(self, name: str) -> bool:
        def read() -> bool:
            with self._database.session_across_teams() as session:
                return models.is_registered(session, name)

        return patiently(read)


def _validation_loss(trainer: Trainer, data: Prepared | None) -> float | None:
    """The loss of training, in batches of its size, on rows that it doesn't train on."""
    if data is None:
        return None
    config = trainer.config
    loss = yardstick(config.loss, dimension=trainer.encoder.dimension)
    with explaining_lack_of_memory(config, "Taking the validation loss"), suppress(NoBatchError):
        return evaluation.validation_loss(trainer.encoder, data, loss, batch_size=config.batch_size, seed=config.seed)
    return None  # too few rows were held out for a batch


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
