"""Teams and their API keys. A key is shown once; only its digest is kept."""

import hashlib
import secrets
import string
import zlib
from collections.abc import Sequence

from sqlalchemy import Double, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.ids import new_id
from storage.tables import ApiKey, Team

DEFAULT_TEAM = "default"
_PREFIX = "lk_"
_ALPHABET = string.ascii_letters + string.digits
_SECRET_LENGTH = 40  # 40 characters of 62 kinds: 238 random bits
_CHECKSUM_LENGTH = 8


def ensure_default_team(session: Session) -> None:
    """Make the team that everything belongs to until there are others."""
    session.execute(insert(Team).values(id=DEFAULT_TEAM, name="Default").on_conflict_do_nothing())


def create_key(session: Session, name: str) -> tuple[ApiKey, str]:
    """A new key of the session's team: its row, and the key itself, which can't be had again."""
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    key = f"{_PREFIX}{secret}{_checksum(secret)}"
    row = ApiKey(id=new_id("key"), name=name, digest=digest_of(key), hint=f"{key[:7]}…{key[-4:]}")
    session.add(row)
    session.flush()
    return row, key


def is_well_formed(key: str) -> bool:
    """Whether a string can be a key at all, by its checksum, without asking the database."""
    secret = key.removeprefix(_PREFIX)[:-_CHECKSUM_LENGTH]
    return (
        key.startswith(_PREFIX)
        and key.isascii()
        and len(secret) == _SECRET_LENGTH
        and secrets.compare_digest(key[-_CHECKSUM_LENGTH:], _checksum(secret))
    )


def find_key(session: Session, key: str) -> ApiKey | None:
    """The row of a key that is neither revoked nor expired, by PostgreSQL's clock."""
    now = func.clock_timestamp()
    return session.scalar(
        select(ApiKey).where(
            ApiKey.digest == digest_of(key),
            ApiKey.revoked_at.is_(None),
            (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > now),
        )
    )


def seconds_left(session: Session, key: ApiKey) -> float | None:
    """How long until a key expires, by PostgreSQL's clock; None if it never does."""
    if key.expires_at is None:
        return None
    return session.scalar(select(func.extract("epoch", key.expires_at - func.clock_timestamp()).cast(Double)))


def digest_of(key: str) -> str:
    """What is kept of a key, hexadecimal."""
    # A key has 238 random bits: a fast hash is enough, there is nothing to guess.
    return hashlib.sha256(key.encode()).hexdigest()


def list_keys(session: Session) -> Sequence[ApiKey]:
    """All keys of the session's team, oldest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at)).all()


def revoke_key(session: Session, key_id: str) -> bool:
    """Make a key worthless at once. False when the team has no such key; revoking twice is fine."""
    revoked = (
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.clock_timestamp()))
    )
    return session.execute(revoked.returning(ApiKey.id)).first() is not None


def _checksum(secret: str) -> str:
    return f"{zlib.crc32(secret.encode()):08x}"
