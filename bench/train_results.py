"""What the training benchmark measured, its tables, and what is asked of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.loss_floors import Floor, floors_table
from bench.loss_results import MB, markdown, plain, seconds
from bench.train_contestants import TITLES, Name
from bench.train_data import Kind
from bench.train_growth import Grown
from bench.train_quality import Quality
from workers.training.precision import Precision

__all__ = ["Results", "Speed", "floors", "floors_table", "growth_table", "quality_lines", "speed_table"]

LENGTHS: dict[Kind, str] = {"short": "short", "tail": "long tail of lengths", "long": "long, all alike"}
#: Times the peer's pairs a second. On short pairs, where it is not padding that costs, bfloat16 is most of it.
FASTER: dict[Precision, dict[Kind, float]] = {
    "bf16": {"short": 2.3, "tail": 4.0, "long": 1.3},
    "fp32": {"short": 1.4, "tail": 4.0, "long": 1.3},
}
CACHED = (512, 32)
MOST_MEMORY, LEAST_SPEED = 0.25, 0.65


@dataclass
class Speed:
    """Seconds of each step by contestant and round."""

    batch_size: int
    mean_tokens: float
    most_tokens: int
    seconds: dict[Name, list[list[float]]] = field(default_factory=dict)

    def pairs_per_second(self, name: Name) -> float:
        return self.batch_size / median(second for taken in self.seconds[name] for second in taken)

    @property
    def faster(self) -> float:
        """How many times the peer's pairs a second: the median of the rounds' ratios."""
        rounds = zip(self.seconds["peer"], self.seconds["likeness"], strict=True)
        return median(median(peer) / median(own) for peer, own in rounds)


@dataclass
class Results:
    """Everything measured; what is missing was not asked for, or died (growth: None)."""

    speeds: dict[Kind, Speed] = field(default_factory=dict)
    quality: Quality | None = None
    growth: dict[tuple[int, int], Grown | None] = field(default_factory=dict)  # by batch and micro-batch, 0: one pass

    def json(self) -> dict[str, Any]:
        """Raw figures."""
        return {
            "speeds": {kind: asdict(speed) for kind, speed in self.speeds.items()},
            "quality": None if self.quality is None else asdict(self.quality),
            "growth": [None if grown is None else asdict(grown) for grown in self.growth.values()],
        }


def speed_table(results: Results) -> list[str]:
    """A row for each kind of pairs."""
    rows = [
        [
            LENGTHS[kind],
            f"{speed.mean_tokens:.0f}, at most {speed.most_tokens}",
            str(speed.batch_size),
            f"{plain(speed.pairs_per_second('likeness'))} ({speed.faster:.2f}×)",
            plain(speed.pairs_per_second("peer")),
        ]
        for kind, speed in results.speeds.items()
    ]
    return markdown(["pairs", "tokens a text", "batch", *TITLES.values()], rows)


def quality_lines(results: Results) -> list[str]:
    """MRR of every seed, and how sure the difference is."""
    quality = results.quality
    assert quality is not None
    rows = [
        [TITLES[name], *[f"{value:.3f}" for value in values], f"{sum(values) / len(values):.3f}"]
        for name, values in quality.by_seed.items()
    ]
    seeds = [f"seed {number}" for number in range(len(rows[0]) - 2)]
    found = quality.difference
    return [
        f"MRR of {quality.questions} questions about modules that training never saw; {quality.pairs} pairs, one epoch",
        "",
        *markdown(["", *seeds, "mean"], rows),
        "",
        f"Likeness less the peer: {found.gain:+.3f}, 95 % interval {found.low:+.3f} … {found.high:+.3f}",
    ]


def growth_table(results: Results) -> list[str]:
    """A row for each batch size."""
    sizes = sorted({size for size, _ in results.growth})
    micro = max(micro for _, micro in results.growth)
    rows = [[str(size), *_cells(results, size, 0), *_cells(results, size, micro)] for size in sizes]
    cached = f"micro-batches of {micro}"
    return markdown(
        ["batch", "one pass: pairs/s", "step", "memory", f"{cached}: pairs/s", "step", "memory"], rows
    )  # fmt: skip


def _cells(results: Results, size: int, micro: int) -> list[str]:
    if (size, micro) not in results.growth:
        return ["", "", ""]
    grown = results.growth[size, micro]
    if grown is None:
        return ["died", "", ""]
    return [plain(grown.pairs_per_second), seconds(grown.seconds), f"{plain(grown.peak_bytes / MB)} MB"]


def floors(results: Results, precision: Precision) -> list[Floor]:
    """What is asked where Likeness trained in `precision`, beside what was reached."""
    found = [_faster(results, kind, times) for kind, times in FASTER[precision].items()]
    return [*found, _quality(results), *_cached(results)]


def _faster(results: Results, kind: Kind, times: float) -> Floor:
    speed = results.speeds.get(kind)
    return _floor(
        f"{LENGTHS[kind]} pairs, against the peer",
        f"≥ {times:g}× its pairs a second",
        None if speed is None else f"{speed.faster:.2f}×",
        speed is not None and speed.faster >= times,
    )


def _quality(results: Results) -> Floor:
    found = None if results.quality is None else results.quality.difference
    return _floor(
        "held-out MRR, less the peer's",
        "not below 0 beyond the 95 % interval",
        None if found is None else f"{found.gain:+.3f} ({found.low:+.3f} … {found.high:+.3f})",
        found is not None and found.high >= 0,
    )


def _cached(results: Results) -> list[Floor]:
    size, micro = CACHED
    whole, cached = results.growth.get((size, 0)), results.growth.get((size, micro))
    both = None if whole is None or cached is None else (whole, cached)
    memory = None if both is None else both[1].peak_bytes / both[0].peak_bytes
    speed = None if both is None else both[1].pairs_per_second / both[0].pairs_per_second
    where = f"batch {size} in micro-batches of {micro}, against one pass"
    return [
        _floor(
            where,
            f"< {MOST_MEMORY:.0%} of its memory".replace("%", " %"),
            None if memory is None else f"{100 * memory:.0f} %",
            memory is not None and memory < MOST_MEMORY,
        ),
        _floor(
            where,
            f"≥ {LEAST_SPEED:g}× its speed",
            None if speed is None else f"{speed:.2f}×",
            speed is not None and speed >= LEAST_SPEED,
        ),
    ]


def _floor(where: str, asked: str, measured: str | None, reached: bool) -> Floor:
    return Floor(where, asked, measured or "not measured", reached if measured else None)
