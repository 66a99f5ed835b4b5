"""What a run may be found guilty of. Every figure has to be zero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Figure(StrEnum):
    """A column of the last table."""

    LOST = "jobs lost"
    DOUBLED = "jobs doubled"
    MISREPORTED = "wrongly reported"
    HUNG = "jobs hung"
    TORN = "artifacts torn"
    ORPHANED = "processes orphaned"
    LEAKED_ROWS = "rows leaked"
    LEAKED_BYTES = "bytes leaked"
    UNEQUAL = "final weights unequal"
    OUT_OF_BOUNDS = "bounds broken"
    UNJUDGED = "driver failed"


@dataclass(frozen=True)
class Finding:
    """One thing that should not have been: of what kind, about what, and by how much it counts."""

    figure: Figure
    subject: str
    text: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.figure}: {self.subject}: {self.text}"
