"""Sessions on PostgreSQL, each of which sees one team's rows and no others."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker, with_loader_criteria
from sqlalchemy.pool import NullPool

from storage.silence import Silence, impatient
from storage.tables import TeamOwned

_ACROSS_TEAMS = object()
# A peer that vanished without a word is noticed in seconds, not hours: by us, and by the server, which keeps its locks
# until then. On a Unix socket these settings are taken, and have no effect.
_CONNECT_ARGUMENTS = {
    "connect_timeout": 2,
    "options": "-c statement_timeout=10000 -c idle_in_transaction_session_timeout=60000 "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10000",
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}

# Of the time somebody waits for an answer: the server gives up first, and says so.
_SERVERS_SHARE = 0.75


class Database:
    """The one way to PostgreSQL. Threads may share it; sessions they may not.

    Sessions raise sqlalchemy.exc.OperationalError when the server is away or a statement takes over 10 s.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        answer_seconds: float | None = None,
        connect_seconds: float | None = None,
    ) -> None:
        """answer_seconds: somebody waits, and is to hear within so long that the server is away or takes too long.

        connect_seconds: how long connecting may take, where that may be longer.
        """
        self._answer_seconds = answer_seconds
        self._connect_seconds = connect_seconds
        self._silence = _silence(answer_seconds, connect_seconds)
        self.engine: Engine = _make_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1).replace("postgres://", "postgresql+psycopg://", 1),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=_SERVERS_SHARE * answer_seconds if answer_seconds else 2.0,
            pool_pre_ping=True,
            silence=self._silence,
            answer_seconds=answer_seconds,
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self, team_id: str) -> Iterator[Session]:
        """A transaction that sees and makes rows of `team_id` only; committed on the way out."""
        with self._transaction(team_id) as session:
            yield session

    @contextmanager
    def session_across_teams(self) -> Iterator[Session]:
        """A transaction for the service's own work: keys before a team is known, workers, the reconciler."""
        with self._transaction(_ACROSS_TEAMS) as session:
            yield session

    @contextmanager
    def _transaction(self, team: object) -> Iterator[Session]:
        if self._silence is not None and not self._silence.may_ask():
            raise OperationalError(None, None, self._silence.error())
        with self._sessions(info={"team": team}) as session, session.begin():
            yield session

    def connect_alone(self, *, answer_seconds: float | None = None) -> Connection:
        """A connection outside the pool, without transactions; whoever asks for it closes it.

        answer_seconds: as the database's, unless it is given.
        """
        seconds = answer_seconds or self._answer_seconds
        # Of its own, and without a pause: there are no other threads that would wait.
        silence = _silence(seconds, self._connect_seconds, pause_seconds=0.0)
        options: dict[str, Any] = {"poolclass": NullPool, "isolation_level": "AUTOCOMMIT"}
        return _make_engine(self.engine.url, silence=silence, answer_seconds=seconds, **options).connect()

    def ping(self) -> None:
        """Raise OperationalError unless the server answers."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _silence(answer_seconds: float | None, connect_seconds: float | None, **options: float) -> Silence | None:
    # Less than was promised: to wait is not all that has to be done.
    return Silence(0.9 * answer_seconds, connect_seconds=connect_seconds, **options) if answer_seconds else None


def _make_engine(url: str | URL, *, silence: Silence | None, answer_seconds: float | None, **options: Any) -> Engine:
    # An error's text ends up in logs; parameters are somebody's data.
    options |= {"hide_parameters": True, "use_native_hstore": False}  # nothing here is one, and asking takes time
    if silence is None or answer_seconds is None:
        return create_engine(url, connect_args=_CONNECT_ARGUMENTS, **options)
    limit = f"-c statement_timeout={_SERVERS_SHARE * answer_seconds * 1000:.0f}"
    # A process that stops in the middle of a transaction must not keep a job's row from its worker for long.
    idle = "-c idle_in_transaction_session_timeout=10000"
    arguments = {
        **_CONNECT_ARGUMENTS,
        "options": f"{_CONNECT_ARGUMENTS['options']} {limit} {idle}",
        "connect_timeout": max(2, math.ceil(silence.connect_seconds)),
    }
    engine = create_engine(url, connect_args=arguments, **options)
    connections = impatient(silence)
    event.listen(engine, "do_connect", lambda _dialect, _record, args, named: connections.connect(*args, **named))
    # A connection that is checked out has just been made, or asked whether it still works.
    event.listen(engine, "checkout", lambda *_: silence.end())
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
