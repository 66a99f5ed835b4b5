"""Growth with the batch as a picture: pairs a second, and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.loss_results import MB
from bench.train_growth import Grown

Growth = Mapping[tuple[int, int], Grown | None]
# Of Okabe and Ito's palette, told apart by the colour-blind too.
ONE_PASS, CACHED = "#D55E00", "#0072B2"


def save_plot(growth: Growth, path: Path, machine: str) -> None:
    """Two panels over the batch size, as a PNG: one pass, and micro-batches."""
    figure = Figure(figsize=(10, 4.0), dpi=160, layout="constrained")
    speed, memory = figure.subplots(1, 2)
    _panel(speed, growth, lambda one: one.pairs_per_second)
    _panel(memory, growth, lambda one: one.peak_bytes / MB)
    speed.set_title("Pairs a second", loc="left")
    speed.set_ylim(bottom=0)
    memory.set_title("Peak memory above the model (MB)", loc="left")
    memory.set_yscale("log")
    speed.legend(frameon=False)
    figure.suptitle(f"all-MiniLM-L6-v2 on short pairs, {machine}", x=0.01, ha="left", fontsize=9, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, growth: Growth, height: Callable[[Grown], float]) -> None:
    for micro in sorted({micro for _, micro in growth}):
        line = [(size, height(one)) for (size, own), one in sorted(growth.items()) if own == micro and one is not None]
        label = f"micro-batches of {micro} (gradient cache)" if micro else "one pass"
        axes.plot(*zip(*line, strict=True), color=CACHED if micro else ONE_PASS, marker="o", markersize=4, label=label)
    sizes = sorted({size for size, _ in growth})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("pairs of a batch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
