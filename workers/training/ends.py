"""How a training ends that can't go on: whatever has a name is recorded under that name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from encoders.errors import AdaptationError, EncoderError
from storage import attempts, disk
from storage.database import Database
from workers.data import validation
from workers.data.preparation import NoRowsError
from workers.patience import patiently
from workers.training.batches import NoBatchError
from workers.training.losses import NonFiniteEmbeddingsError
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import EmbeddingsCollapsedError, NonFiniteLossError, OutOfMemoryInTraining

log = structlog.get_logger("likeness.training")


class Ends:
    """Of one attempt. The recorder's last words are written first."""

    def __init__(self, database: Database, attempt: Attempt, recorder: Recorder) -> None:
        self._database = database
        self._attempt = attempt
        self._recorder = recorder

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is raised within and has a name.

        The rest passes: defects, requests to stop, a database that is away, StaleAttempt.
        """
        try:
            yield
        except (NonFiniteLossError, EmbeddingsCollapsedError, OutOfMemoryInTraining) as error:
            self._fail(error.code, str(error))
        except LikenessError as error:
            self._fail(error.code, error.message)
        except AdaptationError as error:
            self._fail("invalid_value", f"`method.contrastive.model`: {error}")
        except EncoderError as error:
            self._fail("weights_unavailable", str(error))
        except (validation.DatasetError, NoRowsError) as error:
            self._fail("file_invalid", str(error))
        except FileNotFoundError as error:
            self._fail("training_file_missing", f"A file of this job is gone from the artifact store: {error.filename}")
        except NoBatchError as error:
            self._fail("invalid_value", str(error))
        except NonFiniteEmbeddingsError as error:
            # Training names its own step; this is the evaluation under weights that are no good.
            self._fail("non_finite_loss", f"The model can't be evaluated: {error}. Try a tenth of the learning rate.")
        except OSError as error:
            if disk.is_failing(error):
                self._leave_failing_disk(error)
            elif disk.is_full(error):
                self._pause(
                    "Paused because the disk is full: nothing half-written is left, and the last checkpoint is kept. "
                    "Free space in the data directory, for instance by deleting files and models that nobody needs"
                )
            else:
                raise

    def _fail(self, code: str, message: str) -> None:
        log.warning("job_failed", code=code, reason=message)
        self._leave(lambda session: attempts.fail(session, self._attempt.job_id, self._attempt.number, code, message))

    def _pause(self, message: str) -> None:
        """Until somebody has done what the message asks for."""
        log.warning("job_paused", reason=message)
        self._leave(
            lambda session: attempts.pause_running(session, self._attempt.job_id, self._attempt.number, message)
        )

    def _leave_failing_disk(self, error: OSError) -> None:
        """Have another attempt go on from the last checkpoint; not again and again, but until somebody has a look."""
        what = f"The disk of the data directory failed ({error.strerror})"
        log.error("disk_failed", reason=error.strerror, path=error.filename)
        self._leave(lambda session: attempts.disk_failed(session, self._attempt.job_id, self._attempt.number, what))

    def _leave(self, move: Callable[[Session], None]) -> None:
        def write() -> None:
            with self._database.session_across_teams() as session:
                move(session)

        self._recorder.flush()
        patiently(write)
