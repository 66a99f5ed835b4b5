"""What a run says at its end: a table for people, and the same as JSON and Markdown for the documentation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.controls import ControlResult
from tests.chaos.faults import ROWS
from tests.chaos.findings import Figure
from tests.chaos.seedrun import Verdict
from tests.chaos.storm import NUMBER as STORM


@dataclass
class Report:
    """Everything that a run found out."""

    verdicts: list[Verdict] = field(default_factory=list)
    controls: list[ControlResult] = field(default_factory=list)
    not_run: Mapping[str, str] = field(default_factory=dict)  # kinds, and why

    def add(self, verdict: Verdict) -> None:
        """One more seed."""
        self.verdicts.append(verdict)

    @property
    def good(self) -> bool:
        """Whether every figure is zero, every row has fired, and every control went red."""
        figures = all(not verdict.findings for verdict in self.verdicts)
        return figures and not self.short_rows() and all(control.red for control in self.controls)

    def short_rows(self) -> dict[int, tuple[int, int]]:
        """Rows of which fewer faults fired than were wanted: (fired, wanted)."""
        rows = sorted({row for verdict in self.verdicts for row in verdict.wanted})
        counts = {
            row: (
                sum(verdict.fired_of(row) for verdict in self.verdicts),
                sum(verdict.wanted.get(row, 0) for verdict in self.verdicts),
            )
            for row in rows
        }
        return {row: (fired, wanted) for row, (fired, wanted) in counts.items() if fired < wanted}

    def text(self) -> str:
        """The last lines."""
        return "\n".join([*self._faults(), "", *self._figures(), "", *self._recoveries(), *self._rest()])

    def markdown(self) -> str:
        """The tables of the documentation."""
        return "\n".join([*_table(["Fault", "Fired"], self._fault_rows()), "", *_table(*self._figure_rows()), "",
                          *self._recoveries()]) + "\n"  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "seeds": [
                {
                    "seed": verdict.seed,
                    "lease_seconds": verdict.shape.lease_seconds,
                    "seconds": round(verdict.seconds),
                    "accepted": verdict.accepted,
                    "fired": dict(verdict.fired),
                    "figures": {figure: verdict.count(figure) for figure in Figure},
                    "findings": [str(finding) for finding in verdict.findings],
                    "recoveries": [round(seconds, 2) for seconds in verdict.recoveries],
                }
                for verdict in self.verdicts
            ],
            "controls": [control.as_json() for control in self.controls],
            "not_run": dict(self.not_run),
        }

    def write(self, folder: Path) -> None:
        """Leave `chaos.json` and `chaos.md` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chaos.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        (folder / "chaos.md").write_text(self.markdown())

    def _fault_rows(self) -> list[list[str]]:
        names = sorted(
            {name for verdict in self.verdicts for name in verdict.fired}, key=lambda name: (_row(name), name)
        )
        return [
            [f"{_row(name)}. {_title(_row(name))}: {name.partition('. ')[2]}",
             str(sum(verdict.fired[name] for verdict in self.verdicts))]
            for name in names
        ]  # fmt: skip

    def _faults(self) -> list[str]:
        rows = self._fault_rows()
        total = sum(int(count) for _, count in rows)
        lines = [f"{count:>6}  {name}" for name, count in rows]
        return ["Faults that fired", *lines, f"{total:>6}  in all", *self._not_fired()]

    def _not_fired(self) -> list[str]:
        short = [f"  SHORT  row {row}: {fired} of {wanted} fired" for row, (fired, wanted) in self.short_rows().items()]
        return short + [f"NOT RUN  {kind}: {reason}" for kind, reason in self.not_run.items()]

    def _figure_rows(self) -> tuple[list[str], list[list[str]]]:
        heads = ["", *(f"seed {v.seed}, lease {v.shape.lease_seconds:g} s" for v in self.verdicts), "all"]
        counts = [["jobs accepted", *[verdict.accepted for verdict in self.verdicts]]]
        counts += [[figure, *[verdict.count(figure) for verdict in self.verdicts]] for figure in Figure]
        return heads, [[str(name), *map(str, values), str(sum(values))] for name, *values in counts]

    def _figures(self) -> list[str]:
        heads, rows = self._figure_rows()
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        return ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in
                          enumerate(zip(row, widths, strict=True))) for row in [heads, *rows]]  # fmt: skip

    def _recoveries(self) -> list[str]:
        by_lease: dict[float, list[float]] = {}
        for verdict in self.verdicts:
            by_lease.setdefault(verdict.shape.lease_seconds, []).extend(verdict.recoveries)
        return [
            f"From death to running again, lease {lease:g} s: p50 {_quantile(seconds, 0.5):.1f} s, "
            f"p99 {_quantile(seconds, 0.99):.1f} s, of {len(seconds)} deaths"
            for lease, seconds in sorted(by_lease.items())
            if seconds
        ]

    def _rest(self) -> list[str]:
        found = [f"FOUND  seed {v.seed}: {finding}" for v in self.verdicts for finding in v.findings]
        kept = [f"The fleet of seed {v.seed} is kept in {v.folder}" for v in self.verdicts if v.folder]
        controls = [f"Control: {line}" for control in self.controls for line in control.lines()]
        slow = [
            f"Seed {v.seed} took {v.seconds:.0f} s; the machine was {v.slowness:.1f} times as slow as idle"
            for v in self.verdicts
        ]
        return [*slow, *controls, *found, *kept, "All zero." if self.good else "NOT GOOD."]


def _row(name: str) -> int:
    return int(name.partition(".")[0])


def _title(row: int) -> str:
    return "storm" if row == STORM else ROWS[row].title


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(math.ceil(share * len(values)), len(values)) - 1]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join("---" for _ in heads) + " |"
    return ["| " + " | ".join(heads) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]
