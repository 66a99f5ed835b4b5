"""From a job to a model: the training process, from its first line to its exit code.

Run as `python -m workers.training.run JOB_ID ATTEMPT` by `workers.tasks`, which watches it, or several times at once
by `workers.training.launcher`: then this is the story of the first of them, rank 0, and the others follow it.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import structlog
from sqlalchemy.exc import OperationalError

from api_schemas.defaults import searched
from api_schemas.evaluation import Evaluation
from api_schemas.methods import Contrastive, Method
from encoders import onnx, registry
from encoders.loading import AnyEncoder
from storage import attempts, job_files
from storage import files as stored_files
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from storage.logs import configure_logging
from storage.search_trials import SearchTrials
from storage.settings import StorageSettings
from storage.tables import Job
from workers import exit_codes
from workers.adapters import tokenizer_of
from workers.base_models import Base, base_of
from workers.data.preparation import PreparationStopped
from workers.data.prepared import Prepared
from workers.dataset_files import DatasetFiles
from workers.evaluation.job_evaluation import JobEvaluation, Subject
from workers.evaluation.plan import split_of
from workers.evaluation.split import Split
from workers.patience import patiently
from workers.prompts import prompts_of
from workers.search.job_search import Found, JobSearch
from workers.shared_page import page_of_watcher
from workers.training import evaluation, following, mixing, starting
from workers.training.batch_loss import yardstick
from workers.training.batches import NoBatchError
from workers.training.checkpoints import Checkpoints
from workers.training.config import TrainingConfig
from workers.training.ends import Ends
from workers.training.following import Follower
from workers.training.publication import Publication
from workers.training.ranks import Order, Ranks
from workers.training.recorder import Attempt, Recorder
from workers.training.tensorboard import EventFile
from workers.training.trainer import (
    StepReport,
    Trainer,
    TrainingInterrupted,
    explaining_lack_of_memory,
)

log = structlog.get_logger("likeness.training")

_ANSWER_SECONDS = 4.0
_CONNECT_SECONDS = 5.0


def main(job_id: str, number: int) -> int:
    """Train one attempt. Returns one of workers.exit_codes; 1, with a traceback in the log, for a defect."""
    configure_logging(StorageSettings().log_level)
    structlog.contextvars.bind_contextvars(job=job_id, attempt=number)
    stop = _StopRequest()
    try:
        ranks = Ranks.joined()
        return _led(Attempt(job_id, number), stop, ranks) if ranks.rank == 0 else _followed(ranks)
    except (attempts.StaleAttempt, TrainingInterrupted, PreparationStopped) as end:
        log.info("training_left", reason=type(end).__name__)
        return exit_codes.STALE if isinstance(end, attempts.StaleAttempt) else exit_codes.INTERRUPTED
    except OperationalError as error:
        log.warning("database_away", reason=type(error).__name__)
        return exit_codes.DATABASE_AWAY
    except Exception:  # the edge of the process: the supervisor fails the job, the log has the defect
        log.exception("training_crashed")
        return 1


def _database(settings: StorageSettings) -> Database:
    # Training waits while it writes, so a network that swallows what it is given must be noticed soon.
    url = settings.required_database_url
    return Database(url, pool_size=2, answer_seconds=_ANSWER_SECONDS, connect_seconds=_CONNECT_SECONDS)


class _StopRequest:
    """Set by SIGTERM, and by the end of the lease if nobody prolongs it; a training's leader looks between steps."""

    def __init__(self) -> None:
        self.asked = False
        self._page = page_of_watcher()
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __call__(self) -> bool:
        return self.asked or self._page.is_over()

    def _ask(self, _signal: int, _frame: object) -> None:
        self.asked = True


def _led(attempt: Attempt, stop: _StopRequest, ranks: Ranks) -> int:
    settings = StorageSettings().with_running_servers()
    try:
        return train(settings, _database(settings), attempt, stop, ranks)
    finally:
        ranks.leave()


def train(
    settings: StorageSettings,
    database: Database,
    attempt: Attempt,
    should_stop: Callable[[], bool],
    ranks: Ranks | None = None,
) -> int:
    """Train an attempt that was started, in this process, and record how it ended. Returns exit_codes.RECORDED.

    should_stop: asked between steps. Raises StaleAttempt, TrainingInterrupted, PreparationStopped, OperationalError:
    then the job is still running, and somebody else's.
    """
    recorder = Recorder(database, attempt)
    with Ends(database, attempt, recorder).recorded():
        _Run(settings, database, attempt, recorder, should_stop, ranks or Ranks()).whole()
    return exit_codes.RECORDED


def _followed(ranks: Ranks) -> int:
    if ranks.count > 1:
        structlog.contextvars.bind_contextvars(rank=ranks.rank)
        Follower(ranks).follow()
    return exit_codes.RECORDED


class _Run:
    """The steps of a training, in order. Each tells the recorder what it does."""

    def __init__(
        self,
        settings: StorageSettings,
        database: Database,
        attempt: Attempt,
        recorder: Recorder,
        stop: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self._settings = settings
        self._database = database
        self._attempt = attempt
        self._stop = stop
        self._ranks = ranks
        self._artifacts = ArtifactStore(settings.artifacts_dir)
        self._recorder = recorder

    def whole(self) -> None:
        """Load, train, save, publish. Raises what `Ends` knows."""
        job = self._job()
        base_model, folder = self._base(job)
        method = Method(**job.method).contrastive
        if "onnx" in method.export:
            onnx.check_installed()  # rather now than after training
        self._leave_what_is_not_shared(method)
        tokenizer = tokenizer_of(job, folder)
        limit = starting.length_asked(method, tokenizer.max_seq_length)
        prompts = prompts_of(job, method.model, folder)
        files = DatasetFiles(self._settings, self._database, tokenizer, method.data, prompts)
        held_out_ids = [job.validation_file] if job.validation_file else []
        file_ids = [*job_files.training_ids(job), *held_out_ids]
        prepared = {file_id: self._prepared(files, file_id, limit) for file_id in file_ids}
        training = [prepared[file_id] for file_id in job_files.training_ids(job)]
        validation = prepared[job.validation_file] if job.validation_file else None
        split = split_of(training, validation, method.data.eval_split, job.seed)
        held_out = split.evaluation if split else None
        encoder = starting.encoder_of(job, method, folder, training[0])
        self._ranks.tell(Order.PREPARE, following.told(job, folder, training[0]))
        trained_on = split.training if split else training
        search = self._searched(job, encoder, split, method)
        if search is not None:
            method, trained_on = search.method, search.training.training
        config = TrainingConfig.from_method(method, seed=job.seed)
        trainer = Trainer(
            encoder, trained_on, config, on_notice=lambda each: self._recorder.say(*each), ranks=self._ranks
        )
        for notice in [*self._shares(job, trainer), *trainer.batches.notices]:
            self._recorder.say(notice)
        evaluating = JobEvaluation(trainer, split, method, self._recorder, self._stop)
        before = _validation_loss(trainer, held_out, self._stop)
        if search is not None:
            evaluating.begin()
            search.give_weights(trainer)
            evaluating.keep()
        else:
            stored = JobCheckpoints(self._artifacts, job.id)
            checkpoints = Checkpoints(stored, trainer, self._recorder, method.checkpointing, evaluation=evaluating)
            spread = f" in {self._ranks.count} processes" if self._ranks.count > 1 else ""
            self._recorder.say(f"Training {job.model} on {encoder.device}{spread}: {trainer.total_steps} steps")
            with EventFile(self._settings.tensorboard_dir / job.id) as board:
                take_steps(trainer, checkpoints, evaluating, self._recorder, board, self._stop)
        found = self._evaluated(evaluating, job, files, search)
        self._compare(before, _validation_loss(trainer, held_out, self._stop))
        publication = Publication(self._settings, self._database, self._attempt)
        self._recorder.flush()
        run = publication.described(job, base_model, trainer, prepared, found, search)
        publication.publish(job, encoder, base_model, folder, run, search)

    def _job(self) -> Job:
        def read() -> Job:
            with self._database.session_across_teams() as session:
                return attempts.running(session, self._attempt.job_id, self._attempt.number)

        return patiently(read)

    def _base(self, job: Job) -> Base:
        """Where the job starts from; an installed base model has the weights that it promises."""
        base = base_of(job, self._settings, self._database)
        installed = registry.available(self._settings.base_models_dir).get(job.model)
        if base.folder is not None and installed is not None and installed.weights_sha256 is not None:
            registry.verify_weights(base.folder, installed.weights_sha256)
        return base

    def _leave_what_is_not_shared(self, method: Contrastive) -> None:
        """Go on alone where a job wants what one process keeps for itself."""
        if self._ranks.count > 1 and method.loss.memory_size:
            self._recorder.say(
                "`method.contrastive.loss.memory_size` keeps texts of earlier steps in one process: this job trains in "
                f"one instead of {self._ranks.count}. A larger batch_size has as many negatives, and uses them all",
                level="warn",
            )
            self._ranks.leave()

    def _prepared(self, files: DatasetFiles, file_id: str, limit: int) -> Prepared:
        data = files.prepared(files.verified(file_id), limit=limit, should_stop=self._stop)
        cut = f"; {data.truncated} of {data.items} texts are cut to {limit} tokens" if data.truncated else ""
        noun = "texts" if data.vectors is None else "vectors"
        self._recorder.say(f"Read {len(data)} rows with {data.distinct} different {noun}{cut}")
        return data

    def _shares(self, job: Job, trainer: Trainer) -> list[str]:
        """How often each of several files comes, in a sentence."""
        file_ids = job_files.training_ids(job)
        if len(file_ids) == 1:
            return []

        def read() -> list[str]:
            with self._database.session(job.team_id) as session:
                return [stored_files.get(session, file_id).filename for file_id in file_ids]

        return [mixing.told_shares(patiently(read), trainer.batches.steps)]

    def _searched(self, job: Job, encoder: AnyEncoder, split: Split | None, method: Contrastive) -> Found | None:
        """What the trials found, if the job asks for any; the encoder is as it was before them."""
        if split is None or not searched(method):
            return None
        with EventFile(self._settings.tensorboard_dir / job.id) as board:
            return JobSearch(
                encoder, split, method, seed=job.seed, recorder=self._recorder,
                stored=SearchTrials(self._artifacts, job.id), should_stop=self._stop, on_step=board.step,
                ranks=self._ranks,
            ).run()  # fmt: skip

    def _evaluated(
        self, evaluating: JobEvaluation, job: Job, files: DatasetFiles, search: Found | None
    ) -> Evaluation | None:
        """The tuned encoder beside the base, written down before the model is published."""
        source = job.validation_file or job.training_file
        subject = Subject(job.id, source, lambda numbers: files.rows(files.verified(source), numbers))
        found = evaluating.result(subject)
        if found is not None:
            found = found.model_copy(update={"search": search.told if search else None})
            self._recorder.evaluated(found)
        return found

    def _compare(self, before: float | None, after: float | None) -> None:
        if before is not None and after is not None:
            self._recorder.say(f"Validation loss: {before:.4f} before training, {after:.4f} after")


def take_steps(
    trainer: Trainer,
    checkpoints: Checkpoints,
    evaluating: JobEvaluation,
    recorder: Recorder,
    board: EventFile,
    should_stop: Callable[[], bool],
) -> None:
    """Take the steps that are left, keep the state after the last one, and put the model's weights in place.

    Raises what `Trainer.run` and `JobEvaluation.begin` raise, but for StoppedEarly.
    """

    def on_step(report: StepReport) -> None:
        recorder.step(report)
        board.step(report)
        checkpoints.after_step(report)
        # Last: a stop in the middle of it leaves a whole checkpoint, from which only this is done again.
        evaluating.after_step(report)

    checkpoints.resume()
    # What was resolved before an interruption is in the checkpoint.
    recorder.resolved(trainer.resolve()._asdict())
    try:
        with evaluating.until_stopped():
            evaluating.begin()
            if not evaluating.stopped:
                trainer.run(on_step=on_step, should_stop=should_stop)
    except TrainingInterrupted:
        checkpoints.save()
        raise
    # First: nothing of the training is lost then, however long the database is away.
    checkpoints.save()
    recorder.flush()
    # Not before: a checkpoint holds the weights of its step.
    evaluating.keep()


def _validation_loss(trainer: Trainer, data: Prepared | None, should_stop: Callable[[], bool]) -> float | None:
    """The loss of training, in batches of its size, on rows that it doesn't train on. Raises TrainingInterrupted."""
    if data is None:
        return None
    config = trainer.config
    loss = yardstick(config.loss, dimension=trainer.encoder.dimension)

    def stop_if_asked() -> None:
        if should_stop():
            raise TrainingInterrupted(trainer.step, trainer.total_steps)

    with explaining_lack_of_memory(config, "Taking the validation loss"), suppress(NoBatchError):
        return evaluation.validation_loss(
            trainer.encoder, data, loss, batch_size=config.batch_size, seed=config.seed, before_batch=stop_if_asked
        )
    return None  # too few rows were held out for a batch


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
