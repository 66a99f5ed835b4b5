"""The loss benchmark as a picture: time and memory against the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from bench.loss_contestants import CONTESTANTS, Case, Name
from bench.loss_results import MB, Results

# Okabe and Ito's palette, told apart by the colour-blind too.
COLOURS: dict[Name, str] = {
    "tiled": "#0072B2",
    "dense": "#56B4E9",
    "autograd": "#009E73",
    "pml-supcon": "#E69F00",
    "pml-ntxent": "#D55E00",
}
# Labels of lines that end in one place, as a factor between their heights.
_APART = 1.7


def save_plot(results: Results, path: Path, width: int, dtype: str, machine: str) -> None:
    """Two panels, both axes logarithmic, as a PNG; two rows per label."""
    figure = Figure(figsize=(10, 4.4), dpi=160, layout="constrained")
    time, memory = figure.subplots(1, 2)
    chosen = (width, 2, dtype)
    timed = [case for case in results.times if case[2:] == chosen]
    weighed = [case for case in results.bytes_above_inputs if case[2:] == chosen]
    _panel(time, timed, lambda case: results.times[case].median)
    _panel(memory, weighed, lambda case: results.bytes_above_inputs[case] / MB)
    time.set_title("Time, forward and backward (s)", loc="left")
    memory.set_title("Peak memory above the inputs (MB)", loc="left")
    caption = f"NT-Xent of N rows of width {width}, two rows per label, {dtype}, {machine}"
    figure.suptitle(caption, x=0.01, ha="left", fontsize=9, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, cases: list[Case], height: Callable[[Case], float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ends: list[tuple[Name, int, float]] = []
    for name in CONTESTANTS:
        line = sorted((case.rows, height(case)) for case in cases if case.name == name)
        if not line:
            continue
        rows, heights = zip(*line, strict=True)
        thick = 2.4 if name == "tiled" else 1.5
        axes.plot(rows, heights, color=COLOURS[name], marker="o", markersize=4, linewidth=thick)
        ends.append((name, rows[-1], heights[-1]))
    for name, x, y in _apart(ends):
        weight = "bold" if name == "tiled" else "normal"
        axes.annotate(
            CONTESTANTS[name].title,
            (x, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[name],
            weight=weight,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # readable across another line
        )
    sizes = sorted({case.rows for case in cases})
    ticks = [4**power for power in range(20) if sizes[0] <= 4**power <= sizes[-1]]
    axes.set_xticks(ticks, [f"{rows:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for rows in ticks])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 9)  # room for the labels
    axes.set_xlabel("N, rows of the batch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(ends: list[tuple[Name, int, float]]) -> list[tuple[Name, int, float]]:
    """The ends of lines with heights moved up where two labels that begin in one place would touch."""
    placed: list[tuple[Name, int, float]] = []
    for name, x, y in sorted(ends, key=lambda end: (end[1], end[2])):
        below = placed[-1] if placed and placed[-1][1] == x else None
        placed.append((name, x, max(y, below[2] * _APART) if below else y))
    return placed
