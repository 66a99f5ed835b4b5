"""Arming named moments in the product's processes, from outside, and seeing that they came.

The other end is `tests.chaos.injected.chaos_moments`.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Action = Literal["kill", "pause", "sleep", "raise", "lose", "allocate"]


@dataclass(frozen=True)
class Firing:
    """An armed fault that came to pass: in which process, and when (Unix time and monotonic, seconds)."""

    pid: int
    at: float
    monotonic: float


@dataclass(frozen=True)
class Armed:
    """A fault that waits for its moment."""

    name: str
    folder: Path

    def fired(self) -> Firing | None:
        """How it came to pass; None as long as it hasn't."""
        try:
            told = json.loads((self.folder / "fired" / self.name).read_text())
        except FileNotFoundError:
            return None
        return Firing(told["pid"], told["at"], told["monotonic"])

    def release(self) -> None:
        """Let a paused process go on."""
        (self.folder / "released" / self.name).touch()

    def disarm(self) -> None:
        """Take it back; fine if it has fired."""
        (self.folder / "armed" / self.name).unlink(missing_ok=True)


class Moments:
    """The folder through which moments are armed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("armed", "fired", "released", "missing"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def arm(
        self,
        moment: str,
        action: Action = "kill",
        *,
        process: str | None = None,
        job: str | None = None,
        attempt: int | None = None,
        nth: int = 1,
        repeat: bool = False,
        **details: Any,
    ) -> Armed:
        """Have `action` done at the nth time that the moment comes in a process that is meant; None means any.

        Counting begins now, in each process for itself. `repeat`: every time from then on, not only once.
        """
        armed = Armed(f"{moment.replace(' ', '_')}~{secrets.token_hex(4)}", self.folder)
        content = {
            "moment": moment, "action": action, "process": process, "job": job, "attempt": attempt, "nth": nth,
            "repeat": repeat, **details,
        }  # fmt: skip
        beside = self.folder / f".{armed.name}"
        beside.write_text(json.dumps(content))
        beside.rename(self.folder / "armed" / armed.name)
        return armed

    def disarm_all(self) -> None:
        """Take back whatever still waits."""
        for path in (self.folder / "armed").iterdir():
            path.unlink(missing_ok=True)

    def missing(self) -> dict[str, str]:
        """Guards that could not be taken away, and why."""
        return {path.name: path.read_text() for path in (self.folder / "missing").iterdir()}
