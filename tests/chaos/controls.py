"""The negative controls: with one guard of the product taken away, the faults that it is there for must be noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.findings import Figure, Finding


@dataclass(frozen=True)
class Control:
    """A guard, the rows that must go red without it with the kinds of fault that it is there for, and which figures."""

    guard: str
    rows: Mapping[int, Sequence[str]]
    figures: frozenset[Figure]


_WRONG = frozenset({Figure.DOUBLED, Figure.MISREPORTED, Figure.UNEQUAL, Figure.TORN, Figure.HUNG, Figure.LOST})
CONTROLS = (
    Control(
        "fencing",
        {3: ["stopped with its worker"] * 2, 9: ["of a success"] * 2, 10: ["a worker, both ways"] * 2},
        _WRONG,
    ),
    Control(
        "durability",
        {15: ["EIO when the weights are forced to disk"] * 2, 17: ["checkpoint a bit flipped", "model a bit flipped"]},
        _WRONG | {Figure.OUT_OF_BOUNDS},
    ),
    Control("state", {1: ["killed in a step"] * 2}, frozenset({Figure.UNEQUAL})),
    Control("outbox", {7: ["between commit and enqueue"] * 2}, _WRONG | {Figure.OUT_OF_BOUNDS}),
    Control(
        "clock",
        {18: ["a reconciler's clock jumps an hour on", "a worker's clock jumps an hour back"]},
        _WRONG | {Figure.OUT_OF_BOUNDS},
    ),
)


@dataclass
class ControlResult:
    """What a run without a guard was found guilty of, by row."""

    control: Control
    findings: dict[int, list[Finding]] = field(default_factory=dict)
    not_run: dict[int, str] = field(default_factory=dict)  # rows that this machine has no tool for, and which
    missed: dict[int, str] = field(default_factory=dict)  # rows that were run and showed nothing, and why

    @property
    def red(self) -> bool:
        """Whether every row that could be run went red, and there was one."""
        run = [row for row in self.control.rows if row not in self.not_run]
        return bool(run) and all(row not in self.missed and self.findings.get(row) for row in run)

    def as_json(self) -> dict[str, Any]:
        found = {row: [str(finding) for finding in findings] for row, findings in self.findings.items()}
        return {
            "guard": self.control.guard,
            "red": self.red,
            "findings": found,
            "not_run": self.not_run,
            "missed": self.missed,
        }

    def lines(self) -> list[str]:
        """A line for each row."""
        return [f"without {self.control.guard}, row {row}: {self._told(row)}" for row in self.control.rows]

    def _told(self, row: int) -> str:
        if row in self.not_run:
            return f"NOT RUN, {self.not_run[row]}"
        if row in self.missed:
            return f"NOT SHOWN, {self.missed[row]}"
        if not self.findings.get(row):
            return "STAYED GREEN, so that its green proves nothing"
        return f"red, {self.findings[row][0]}"
