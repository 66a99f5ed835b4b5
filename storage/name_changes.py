"""What PostgreSQL tells of keys, models and aliases that change, for whoever remembers what names stood for.

Triggers on these tables notify the channel in the commit that changes them (migration 0014).
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage.database import Database

_CHANNEL = "likeness_names"
_ANSWER_SECONDS = 2.0
# Nothing is told by a schema without the triggers, which an older version has made or is about to.
_NOTIFY = text(
    "SELECT pg_notify(:channel, :word) FROM (SELECT count(*) AS tables FROM pg_trigger "
    "WHERE tgname = 'tell_names_changed' AND tgenabled IN ('O', 'A') "
    "AND tgrelid IN (to_regclass('models'), to_regclass('api_keys'), to_regclass('aliases'))) AS telling "
    "WHERE tables = 3"
)


class UnheardError(Exception):
    """A change would not be heard, though the server answers."""


class NameChanges:
    """Hears of every change that is committed from now on, on a connection of its own. One thread uses it.

    Methods raise sqlalchemy.exc.OperationalError when the connection is gone; then it is of no more use.
    """

    def __init__(self, database: Database, on_change: Callable[[], None]) -> None:
        """on_change: called for changes that were heard. Raises OperationalError."""
        self._on_change = on_change
        # Its own words go to nobody else.
        self._own_channel = f"likeness_proof_{secrets.token_hex(8)}"
        self._connection = database.connect_alone(answer_seconds=_ANSWER_SECONDS)
        try:
            for channel in (_CHANNEL, self._own_channel):
                self._connection.execute(text(f"LISTEN {channel}"))
        except OperationalError:
            self.close()
            raise

    def prove(self) -> None:
        """Return once all changes that were committed before the call have been heard.

        It is the server that keeps the order: a word to oneself comes after them. Raises UnheardError if it doesn't
        come, as through a pooler that gives the connection to others in between, or if the schema tells nothing.
        """
        word = secrets.token_hex(8)
        deadline = time.monotonic() + _ANSWER_SECONDS
        if self._connection.execute(_NOTIFY, {"channel": self._own_channel, "word": word}).first() is None:
            raise UnheardError("the tables don't tell of their changes: run `likeness migrate`")
        while word not in self.hear(max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise UnheardError(f"a notification did not come within {_ANSWER_SECONDS:g} s: is there a pooler?")

    def hear(self, seconds: float) -> list[str]:
        """Listen until something is heard, but for no longer than `seconds`. Returns one's own words."""
        try:
            heard = list(self._driver.notifies(timeout=seconds, stop_after=1))
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise OperationalError(None, None, error) from error
        if any(notification.channel == _CHANNEL for notification in heard):
            self._on_change()
        return [notification.payload for notification in heard if notification.channel == self._own_channel]

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        with suppress(OperationalError):
            # Without a word to the server, which may not be there to hear it.
            self._connection.invalidate()
            self._connection.close()

    @property
    def _driver(self) -> Any:
        return self._connection.connection.driver_connection
