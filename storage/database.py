"""Sessions on PostgreSQL, each of which sees one team's rows and no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker, with_loader_criteria
from sqlalchemy.pool import NullPool

from storage.tables import TeamOwned

_ACROSS_TEAMS = object()
#: How long a statement may go without an answer, if nothing else is said.
ANSWER_SECONDS = 12.0
# A peer that vanished without a word is noticed in seconds, not hours: by us, and by the server, which holds its locks
# until then. Sockets that aren't TCP have no use for these settings, and take them.
_CONNECT_ARGUMENTS = {
    "connect_timeout": 2,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
_SERVER_SETTINGS = {
    "idle_in_transaction_session_timeout": 60_000,
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class _Connection(psycopg.Connection[Any]):
    """A connection that doesn't wait for ever for a server, or for a network that swallows what it is given.

    The kernel notices neither a server that is stopped nor a proxy that acknowledges and passes nothing on.
    """

    answer_seconds: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Do what needs the server. Raises psycopg.OperationalError, and is closed, if it stays without an answer."""
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # The answer may still come, and would be taken for another statement's.
                self.pgconn.finish()
            raise


class Database:
    """The one way to PostgreSQL. Threads may share it; sessions they may not.

    Sessions raise sqlalchemy.exc.OperationalError when the server is away or a statement takes too long: first the
    server is to end it, after five sixths of `answer_seconds`, and if that isn't heard of, it is given up here.
    """

    def __init__(self, url: str, *, pool_size: int = 10, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self.engine: Engine = _engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            answer_seconds,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=2.0,
            pool_pre_ping=True,
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self, team_id: str) -> Iterator[Session]:
        """A transaction that sees and makes rows of `team_id` only; committed on the way out."""
        with self._sessions(info={"team": team_id}) as session, session.begin():
            yield session

    @contextmanager
    def session_across_teams(self) -> Iterator[Session]:
        """A transaction for the service's own work: keys before a team is known, workers, the reconciler."""
        with self._sessions(info={"team": _ACROSS_TEAMS}) as session, session.begin():
            yield session

    def connect_alone(self, *, answer_seconds: float | None = None) -> Connection:
        """A connection outside the pool, without transactions; whoever asks for it closes it.

        answer_seconds: as of the database, unless it is given.
        """
        seconds = self._answer_seconds if answer_seconds is None else answer_seconds
        return _engine(self.engine.url, seconds, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()

    def connect_patiently(self) -> Connection:
        """A connection outside the pool whose statements may take as long as they like; whoever asks closes it."""
        return _engine(self.engine.url, None, poolclass=NullPool).connect()

    def ping(self) -> None:
        """Raise OperationalError unless the server answers."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _engine(url: URL, answer_seconds: float | None, **options: Any) -> Engine:
    server = {"statement_timeout": round((answer_seconds or 0) * 1000 * 5 / 6), **_SERVER_SETTINGS}
    told = " ".join(f"-c {name}={value}" for name, value in server.items())
    # An error's text ends up in logs; parameters are somebody's data.
    engine = create_engine(url, hide_parameters=True, connect_args={**_CONNECT_ARGUMENTS, "options": told}, **options)

    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> _Connection:
        connection = _Connection.connect(*arguments, **parameters)
        connection.answer_seconds = answer_seconds
        return connection

    event.listen(engine, "do_connect", connect)
    return engine


@event.listens_for(Session, "do_orm_execute")
def _see_own_team_only(state: ORMExecuteState) -> None:
    # The one place where rows are filtered by team. Column loads repeat a filter their first load had.
    if state.is_column_load or state.is_relationship_load:
        return
    team = state.session.info["team"]
    if team is not _ACROSS_TEAMS:
        state.statement = state.statement.options(
            with_loader_criteria(TeamOwned, lambda table: table.team_id == team, include_aliases=True)
        )


@event.listens_for(Session, "before_flush")
def _write_own_team_only(session: Session, _context: Any, _instances: Any) -> None:
    team = session.info["team"]
    if team is _ACROSS_TEAMS:
        return
    for row in (*session.new, *session.dirty):
        if isinstance(row, TeamOwned):
            owner: str | None = row.team_id
            if owner is None:
                row.team_id = team
            elif owner != team:
                raise PermissionError(f"a session of team {team} tried to write a row of team {owner}")
