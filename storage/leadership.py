"""Who reconciles: one process at a time, elected by an advisory lock."""

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from storage.database import Database

# Any number will do, as long as every version of the code agrees on it.
_LEADER_LOCK = 7_310_041_212


class Leadership:
    """The advisory lock, on a connection outside any pool: a pool would close it, and lose the lock silently."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    def is_mine(self) -> bool:
        """Whether this process leads, asked of the very connection that holds the lock.

        Raises OperationalError when that connection is gone; then somebody else may lead.
        """
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
            return self._try_to_lead()
        except OperationalError:
            self.give_up()
            raise

    def _try_to_lead(self) -> bool:
        self._connection = self._database.connect_alone()
        if self._connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LEADER_LOCK}):
            return True
        self.give_up()
        return False

    def give_up(self) -> None:
        """Close the connection, and with it the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
