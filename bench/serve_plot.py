"""Growth with the number of clients as a picture: texts a second, and latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.serve_client import Outcome

Growth = Mapping[tuple[int, str], Outcome]
# Of Okabe and Ito's palette, told apart by the colour-blind too.
_COLOURS = {"Likeness": "#D55E00", "infinity": "#0072B2"}


def save_plot(growth: Growth, path: Path, machine: str) -> None:
    """Two panels over the number of clients, as a PNG."""
    figure = Figure(figsize=(10, 4.0), dpi=160, layout="constrained")
    rate, latency = figure.subplots(1, 2)
    _panel(rate, growth, lambda one: one.rate, "-")
    _panel(latency, growth, lambda one: one.quantile(0.5), "-")
    _panel(latency, growth, lambda one: one.quantile(0.99), ":")
    rate.set_title("Texts a second", loc="left")
    rate.set_ylim(bottom=0)
    rate.legend(frameon=False)
    latency.set_title("Latency: median, and 99 % (dotted), ms", loc="left")
    latency.set_yscale("log")
    figure.suptitle(f"all-MiniLM-L6-v2, a text of about 12 tokens a request, {machine}", x=0.01, ha="left", fontsize=9,
                    color="0.35")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, growth: Growth, height: Callable[[Outcome], float], style: str) -> None:
    for server in dict.fromkeys(server for _, server in growth):
        line = [(clients, height(one)) for (clients, own), one in sorted(growth.items()) if own == server]
        axes.plot(*zip(*line, strict=True), style, color=_COLOURS[server], marker="o", markersize=4, label=server)
    clients = sorted({number for number, _ in growth})
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(number) for number in clients])
    axes.minorticks_off()
    axes.set_xlabel("clients, each with one request at a time")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
