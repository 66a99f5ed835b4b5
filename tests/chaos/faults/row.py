"""A row of the fault table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.chaos.shots import Shot

Inject = Callable[[Shot], None]


@dataclass(frozen=True)
class Row:
    """Faults of one family. `full` is how many a full run fires; a quarter of it is the least."""

    number: int
    title: str
    full: int
    kinds: Mapping[str, Inject]
    #: Kinds that reach every process, and would spoil what others are judged by: nothing else is done meanwhile.
    alone: frozenset[str] = frozenset()
    #: What a kind needs on the machine, as `tests.chaos.tools` names it.
    needs: Mapping[str, str] = field(default_factory=dict)
    #: How many faults one shot fires.
    per_shot: int = 1

    def wanted(self, *, full: bool) -> int:
        """How many faults of this row a run fires, over all its seeds."""
        return self.full if full else math.ceil(self.full / 4)
