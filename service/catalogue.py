"""Whose a key is and which model a name stands for, without asking the database at every request.

What was read is remembered until PostgreSQL tells that a key, a model or an alias has changed. It counts only while it
is certain that such a change would be heard: a thread listens, and proves once a second that it hears. Otherwise every
request asks the database, as if nothing were remembered.
"""

import math
import threading
import time
from collections.abc import Hashable
from typing import TypeVar

import structlog
from starlette.concurrency import run_in_threadpool

from service.errors import BACKEND_AWAY
from service.keys import Caller
from service.model_names import NamedModel, find_model
from service.remembered import Remembered
from storage import teams
from storage.database import Database
from storage.name_changes import NameChanges, UnheardError
from storage.settings import StorageSettings

Name = TypeVar("Name", bound=Hashable)
Meaning = TypeVar("Meaning")

log = structlog.get_logger(__name__)

#: How long what is remembered counts after a proof was asked for: so old it may be at the most.
TRUST_SECONDS = 3.0
_PROOF_EVERY_SECONDS = 1.0
#: How soon to connect again.
_PAUSE_SECONDS = 1.0
#: How soon to notice that the thread is to end.
_LOOK_EVERY_SECONDS = 0.25
_MOST_REMEMBERED = 10_000
_DEAF: tuple[type[Exception], ...] = (*BACKEND_AWAY, UnheardError)


class Catalogue:
    """Callers by key and models by team and name, remembered in this process. Raises what the database raises."""

    def __init__(self, database: Database, settings: StorageSettings) -> None:
        self._database = database
        self._settings = settings
        self._callers: Remembered[str, Caller] = Remembered(_MOST_REMEMBERED)
        self._models: Remembered[tuple[str, str], NamedModel] = Remembered(_MOST_REMEMBERED)
        self._trusted_until = -math.inf
        self._is_deaf = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue", daemon=True)
        self.hits = 0
        """Look-ups answered from memory."""
        self.misses = 0
        """Look-ups that asked the database."""

    @property
    def is_trusted(self) -> bool:
        """Whether what is remembered counts now."""
        return time.monotonic() < self._trusted_until

    def start(self) -> None:
        """Begin to listen; returns at once. Until it hears, every look-up asks the database."""
        self._thread.start()

    def close(self, *, patience_seconds: float = 2.0) -> None:
        """Remember nothing more, and end the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(patience_seconds)

    def forget(self) -> None:
        """Ask the database from now on, also for whoever is asking already.

        Of use to who has just changed something, and wants to find it changed with its next request here.
        """
        self._callers.forget()
        self._models.forget()

    async def caller(self, key: str) -> Caller | None:
        """Whose key this is; None if it is nobody's, or no longer."""
        remembered = self._recall(self._callers, teams.digest_of(key))
        return await run_in_threadpool(self._find_caller, key) if remembered is None else remembered

    async def model(self, team_id: str, name: str) -> NamedModel:
        """The model that a team's request names. Raises LikenessError `model_not_found`."""
        remembered = self._recall(self._models, (team_id, name))
        return await run_in_threadpool(self._find_model, team_id, name) if remembered is None else remembered

    def _recall(self, remembered: Remembered[Name, Meaning], name: Name) -> Meaning | None:
        found = remembered.get(name) if self.is_trusted else None
        # On the event loop only, so that no count is lost.
        self.hits += found is not None
        self.misses += found is None
        return found

    def _find_caller(self, key: str) -> Caller | None:
        generation, began_at = self._callers.generation, time.monotonic()
        with self._database.session_across_teams() as session:
            row = teams.find_key(session, key)
            if row is None:
                return None
            seconds_left = teams.seconds_left(session, row)
        caller = Caller(row.team_id, row.id)
        # From before the question on, so that it ends here no later than there.
        until = math.inf if seconds_left is None else began_at + seconds_left
        self._callers.put(teams.digest_of(key), caller, generation=generation, until=until)
        return caller

    def _find_model(self, team_id: str, name: str) -> NamedModel:
        generation = self._models.generation
        with self._database.session(team_id) as session:
            model = find_model(session, self._settings, name)
        self._models.put((team_id, name), model, generation=generation)
        return model

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen()
            except _DEAF as error:
                self._warn(str(error).partition("\n")[0])
            except Exception:  # the edge of a thread that has to live as long as the process
                log.exception("listening_failed")
            self._closed.wait(_PAUSE_SECONDS)

    def _warn(self, reason: str) -> None:
        """Say once that nothing is remembered, until it is again."""
        if not self._is_deaf:
            log.warning("names_not_remembered", reason=reason)
        self._is_deaf = True

    def _listen(self) -> None:
        changes = NameChanges(self._database, on_change=self.forget)
        try:
            changes.prove()
            # What was read before may have changed while nobody listened, or told.
            self.forget()
            while not self._closed.is_set():
                asked_at = time.monotonic()
                changes.prove()
                self._trusted_until, self._is_deaf = asked_at + TRUST_SECONDS, False
                self._hear_until(changes, asked_at + _PROOF_EVERY_SECONDS)
        finally:
            self._trusted_until = -math.inf
            changes.close()

    def _hear_until(self, changes: NameChanges, end: float) -> None:
        while (left := end - time.monotonic()) > 0 and not self._closed.is_set():
            changes.hear(min(left, _LOOK_EVERY_SECONDS))
