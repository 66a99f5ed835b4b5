"""Creating something once, however often it is asked for.

The answer is kept in the commit that creates what it tells of: there is no moment at which a crash could leave the one
without the other, and nothing is left behind by who crashes before. That only one at a time asks under a name is seen
to by a lock that the transaction holds, so a process that dies gives it up.

A client may name its request, by a key. OpenAI's clients don't: they only count how often they have sent it. What they
get is the newest answer to an equal request, from within the time in which such a client sends again.
"""

import time
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import ColumnElement, DateTime, and_, delete, func, or_, select
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from storage.tables import KeptAnswer

#: How long an answer is kept.
LIFETIME = timedelta(hours=24)

_NOW = func.clock_timestamp(type_=DateTime(timezone=True))


@dataclass(frozen=True)
class Asking:
    """A request to create something, as far as it can be told from others."""

    #: Equal for requests that ask for the same.
    fingerprint: str
    #: What the client calls it.
    key: str | None = None
    #: How often the client has sent it before, if it says so.
    retry: int | None = None
    #: How long before it came its first attempt may have been answered.
    reach: timedelta = timedelta(0)
    #: When it came, by the monotonic clock.
    came_at: float = field(default_factory=time.monotonic)


def first_answer(session: Session, asking: Asking) -> str | None:
    """The body that answered the same request before. None: until the transaction ends nobody else gets to ask it.

    Raises LikenessError `idempotency_key_in_use` or `idempotency_key_reused`.
    """
    if asking.key is not None:
        return _answer_to_key(session, asking, asking.key)
    if asking.retry is not None:
        return _answer_to_retry(session, asking, asking.retry)
    return None


def keep(session: Session, asking: Asking, body: str) -> None:
    """Keep the answer to a request that has just been done, for whoever asks again."""
    if asking.key is not None:
        session.add(KeptAnswer(key=asking.key, fingerprint=asking.fingerprint, body=body))
    elif asking.retry is not None:
        session.add(KeptAnswer(retry=asking.retry, fingerprint=asking.fingerprint, body=body))


def claim_name(team_id: str, key: str) -> str:
    """What a request's claim is called that is still being received (see storage.claims)."""
    return f"receiving {team_id} {key}"


def in_use() -> LikenessError:
    """What to raise while another request with the same key is being answered."""
    return LikenessError(
        "idempotency_key_in_use",
        "A request with this Idempotency-Key is still being answered. Send it again in a moment for the same answer.",
        param="idempotency-key",
        headers={"Retry-After": "1"},
    )


def sweep(session: Session) -> int:
    """Forget the answers whose time is over. Returns how many there were."""
    forgotten = session.execute(delete(KeptAnswer).where(_is_over()).returning(KeptAnswer.id))
    return len(forgotten.all())


def _answer_to_key(session: Session, asking: Asking, key: str) -> str | None:
    if not session.scalar(select(func.pg_try_advisory_xact_lock(_lock(session, f"key {key}")))):
        raise in_use()
    session.execute(delete(KeptAnswer).where(KeptAnswer.key == key, _is_over()))
    kept = session.scalar(select(KeptAnswer).where(KeptAnswer.key == key))
    if kept is not None and kept.fingerprint != asking.fingerprint:
        raise LikenessError(
            "idempotency_key_reused",
            "This Idempotency-Key was sent before, with another request. Make a new key for every new request.",
            param="idempotency-key",
        )
    return None if kept is None else kept.body


def _answer_to_retry(session: Session, asking: Asking, retry: int) -> str | None:
    # Waited for and not tried: an equal request of somebody else's is no reason to refuse this one.
    session.execute(select(func.pg_advisory_xact_lock(_lock(session, f"retry {asking.fingerprint}"))))
    came_at = _NOW - timedelta(seconds=time.monotonic() - asking.came_at)
    earlier = and_(KeptAnswer.retry < retry, KeptAnswer.created_at > came_at - asking.reach)
    # Its client has given this attempt up, sent another, and that one was faster.
    later = and_(KeptAnswer.retry > retry, KeptAnswer.created_at > came_at)
    kept = session.scalar(
        select(KeptAnswer)
        .where(KeptAnswer.key.is_(None), KeptAnswer.fingerprint == asking.fingerprint, or_(earlier, later))
        .order_by(KeptAnswer.created_at.desc(), KeptAnswer.id.desc())
        .limit(1)
    )
    if kept is None:
        return None
    # An attempt with the same number that comes later belongs to another request.
    kept.retry = max(retry, kept.retry or 0)
    return kept.body


def _is_over() -> ColumnElement[bool]:
    return KeptAnswer.created_at < _NOW - LIFETIME


def _lock(session: Session, name: str) -> ColumnElement[int]:
    return func.hashtextextended(f"asking {session.info['team']} {name}", 0)
