"""What was measured of the servers, and what is asked of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

from bench.loss_floors import Floor
from bench.loss_results import markdown
from bench.serve_client import Outcome

MB = 2**20


class Shape(NamedTuple):
    """Clients in a closed loop, and texts of each of their requests."""

    clients: int
    texts: int

    def __str__(self) -> str:
        return f"{self.clients} × {self.texts}"


#: What is asked of each: times the peer's rate, and its share of the peer's p50, if any is asked.
ASKED: dict[Shape, tuple[float, float | None]] = {
    Shape(1, 1): (4.0, 0.25),
    Shape(16, 1): (3.5, None),
    Shape(64, 1): (2.5, None),
    Shape(4, 32): (2.5, None),
}


@dataclass
class Overload:
    """An open loop at capacity, and at twice that."""

    capacity: float  # requests a second
    at_capacity: Outcome
    beyond: Outcome
    memory_before: int  # bytes
    memory_after: int


@dataclass
class Results:
    """All of it. Keys of `rounds` are shape and server."""

    rounds: dict[tuple[Shape, str], list[Outcome]] = field(default_factory=dict)
    long: dict[str, list[Outcome]] = field(default_factory=dict)  # 256 tokens, by server
    bare: float | None = None  # texts a second of the forward alone
    mode: str = ""
    variants: dict[str, Outcome] = field(default_factory=dict)  # of Likeness: JSON, cache
    growth: dict[tuple[int, str], Outcome] = field(default_factory=dict)  # by clients and server
    overload: Overload | None = None
    single_alone: Outcome | None = None
    single_beside_bulk: Outcome | None = None
    batch_ms: float = 0.0  # the longest pass so far
    swaps: int = 0
    swap: Outcome | None = None
    mixed_answers: int = 0
    many_models: Outcome | None = None
    cold_ms: list[float] = field(default_factory=list)
    soak: list[int] = field(default_factory=list)  # bytes, each minute

    def rate(self, shape: Shape, server: str) -> float:
        return median(outcome.rate for outcome in self.rounds[shape, server])

    def p50(self, shape: Shape, server: str) -> float:
        return median(outcome.quantile(0.5) for outcome in self.rounds[shape, server])

    def ratio(self, shape: Shape) -> float | None:
        """How many times the peer's rate: the median of the ratios within rounds."""
        ours, peers = self.rounds.get((shape, "Likeness"), []), self.rounds.get((shape, "infinity"), [])
        pairs = [our.rate / peer.rate for our, peer in zip(ours, peers, strict=False) if peer.rate]
        return median(pairs) if pairs else None

    def json(self) -> dict[str, Any]:
        """Everything, without the single latencies."""
        raw = asdict(self)
        raw["rounds"] = {
            f"{shape} {server}": [_short(each) for each in found] for (shape, server), found in self.rounds.items()
        }
        raw["growth"] = {f"{clients} {server}": _short(each) for (clients, server), each in self.growth.items()}
        raw["long"] = {server: [_short(each) for each in found] for server, found in self.long.items()}
        raw["variants"] = {name: _short(each) for name, each in self.variants.items()}
        for name in ("single_alone", "single_beside_bulk", "swap", "many_models"):
            raw[name] = _short(found) if (found := getattr(self, name)) else None
        if self.overload:
            raw["overload"] |= {
                "at_capacity": _short(self.overload.at_capacity),
                "beyond": _short(self.overload.beyond),
            }
        return raw


def _short(outcome: Outcome) -> dict[str, Any]:
    return {
        "texts_per_second": outcome.rate, "p50_ms": outcome.quantile(0.5), "p99_ms": outcome.quantile(0.99),
        "statuses": outcome.statuses, "broken": outcome.broken,
    }  # fmt: skip


def grid_table(results: Results) -> list[str]:
    """A row for each shape: texts a second and latencies of both, and their ratio."""
    rows = []
    for shape in dict.fromkeys(shape for shape, _ in results.rounds):
        ratio = results.ratio(shape)
        rows.append([str(shape), *_cells(results, shape, "Likeness"), *_cells(results, shape, "infinity"),
                     "" if ratio is None else f"{ratio:.2f}×"])  # fmt: skip
    return markdown(
        ["clients × texts", "Likeness, texts/s", "p50, p99 ms", "infinity, texts/s", "p50, p99 ms", "rate, times"], rows
    )


def _cells(results: Results, shape: Shape, server: str) -> list[str]:
    if (shape, server) not in results.rounds:
        return ["", ""]
    p99 = median(outcome.quantile(0.99) for outcome in results.rounds[shape, server])
    return [f"{results.rate(shape, server):.0f}", f"{results.p50(shape, server):.1f}, {p99:.1f}"]


def variants_table(results: Results) -> list[str]:
    """What JSON costs, and what remembered vectors save, at 4 × 32."""
    return markdown(
        ["4 × 32", "texts/s", "p50 ms"],
        [[name, f"{each.rate:.0f}", f"{each.quantile(0.5):.1f}"] for name, each in results.variants.items()],
    )


def floors(results: Results) -> list[Floor]:
    """All that is asked."""
    found = []
    for shape, (times, share) in ASKED.items():
        ratio = results.ratio(shape)
        faster = ratio is not None and ratio >= times
        found.append(_floor(f"{shape}, rate", f"≥ {times:g}× infinity's", ratio, "{:.2f}×", faster))
        if share is not None and ratio is not None:
            part = results.p50(shape, "Likeness") / results.p50(shape, "infinity")
            found.append(
                _floor(f"{shape}, p50", f"≤ {100 * share:g} % of infinity's", 100 * part, "{:.0f} %", part <= share)
            )
    if results.bare:
        part = results.rate(Shape(4, 32), "Likeness") / results.bare
        where = f"4 × 32 through HTTP against the bare forward ({results.mode})"
        found.append(_floor(where, "≥ 70 %", 100 * part, "{:.0f} %", part >= 0.7))
    return [*found, *_of_overload(results), *_of_neighbours(results), *_of_models(results), *_of_soak(results)]


def _of_overload(results: Results) -> list[Floor]:
    if (over := results.overload) is None:
        return []
    ratio = over.beyond.quantile(0.99) / over.at_capacity.quantile(0.99)
    others = sum(count for status, count in over.beyond.statuses.items() if status not in ("200", "429"))
    failed = others + over.beyond.broken
    growth = over.memory_after / over.memory_before - 1
    return [
        _floor("twice capacity: p99 of the accepted", "≤ 2× that at capacity", ratio, "{:.2f}×", ratio <= 2),
        _floor("twice capacity: answers but 200 and 429, and none", "0", failed, "{:.0f}", failed == 0),
        _floor("twice capacity: memory", "flat (< 5 % more)", 100 * growth, "{:+.1f} %", growth < 0.05),
    ]  # fmt: skip


def _of_neighbours(results: Results) -> list[Floor]:
    alone, beside = results.single_alone, results.single_beside_bulk
    if alone is None or beside is None:
        return []
    most = 3 * alone.quantile(0.99) + results.batch_ms
    found = beside.quantile(0.99)
    return [
        _floor(
            "one text beside bulk of 2048: p99",
            f"≤ 3× alone and one pass: {most:.0f} ms",
            found,
            "{:.0f} ms",
            found <= most,
        )
    ]


def _of_models(results: Results) -> list[Floor]:
    found = []
    if results.swap is not None:
        wrong = _failed(results.swap) + results.mixed_answers
        where = f"an alias moved {results.swaps} times under load: failed and mixed"
        found.append(_floor(where, "0", wrong, "{:.0f}", wrong == 0))
    if results.many_models is not None:
        failed, cold = _failed(results.many_models), median(results.cold_ms)
        found.append(_floor("10 models, room for 4: failed", "0", failed, "{:.0f}", failed == 0))
        found.append(_floor("10 models, room for 4: a cold one", "< 2000 ms", cold, "{:.0f} ms", cold < 2000))
    return found


def _failed(outcome: Outcome) -> int:
    return outcome.broken + sum(count for status, count in outcome.statuses.items() if status != "200")


def _of_soak(results: Results) -> list[Floor]:
    if len(results.soak) < 2:
        return []
    growth = results.soak[-1] / results.soak[0] - 1
    return [
        _floor(
            f"{len(results.soak) - 1} minutes at 80 % load: memory",
            "< 2 % more",
            100 * growth,
            "{:+.1f} %",
            growth < 0.02,
        )
    ]


def _floor(where: str, asked: str, measured: float | None, form: str, reached: bool) -> Floor:
    return Floor(
        where,
        asked,
        "not measured" if measured is None else form.format(measured),
        reached if measured is not None else None,
    )
