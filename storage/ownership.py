"""Which database a folder of artifacts belongs to.

What a database has no row of is removed from the folder. A database that was made anew, or another one, has no row of
anything: so a folder is tidied up only by the database that it was first tidied up by.
"""

import os
import secrets
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import disk
from storage.artifacts import ArtifactStore
from storage.tables import Team
from storage.teams import DEFAULT_TEAM

#: The file in the folder of artifacts that says which.
OWNER = "database"


def claim(session: Session, artifacts: ArtifactStore) -> bool:
    """Whether the artifacts belong to the session's database; those that belong to none do from now on.

    Raises OSError.
    """
    if not (artifacts.root / OWNER).exists():
        _write(artifacts.root / OWNER, _identity(session))
    return not is_anothers(session, artifacts)


def is_anothers(session: Session, artifacts: ArtifactStore) -> bool:
    """Whether the artifacts belong to another database than the session's. Raises OSError."""
    try:
        return (artifacts.root / OWNER).read_text() != _identity(session)
    except FileNotFoundError:
        return False


def _identity(session: Session) -> str:
    """When the database was made, to the microsecond: no other's, and the same in whatever a dump is restored to."""
    made = session.execute(select(Team.created_at).where(Team.id == DEFAULT_TEAM)).scalar_one()
    return f"{made.timestamp():.6f}\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w") as target:
            target.write(text)
            target.flush()
            os.fsync(target.fileno())
        temporary.rename(path)
        disk.force_directory(path.parent)
    finally:
        disk.remove(temporary)
