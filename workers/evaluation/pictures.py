"""Pictures of a run as SVG: lines over steps, and histograms of cosines.

Written here rather than with matplotlib: two kinds of picture don't warrant 60 MB in every worker's image, a second in
every job and the font cache that it builds in a new container. Text stays text, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from api_schemas.evaluation import TITLES, CosineHistogram, Evaluation, Search, SearchTrial

#: Okabe and Ito's blue and vermilion, told apart by colour-blind readers too.
_ALIKE, _NOT_ALIKE, _INK = "#0072b2", "#d55e00", "#333333"
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 40
#: Points of a line: more can't be told apart at this width.
_MOST_POINTS = 600


@dataclass(frozen=True)
class Line:
    """A named line or outline through points (x, y)."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture: lines over two axes."""

    title: str
    across: str
    lines: Sequence[Line]
    logarithmic: bool = False  # across: the points' x are logarithms to the base 10


def draw_training(path: Path, losses: Sequence[tuple[int, float]], evaluation: Evaluation | None) -> None:
    """The loss of each step, (step, loss), and under it the main metric on the evaluation split, if there is one."""
    panels = [Panel("Training loss", "step", [Line("loss", _ALIKE, _thinned(losses))])]
    if evaluation is not None:
        title = TITLES[evaluation.metric]
        measured = [(float(each.step), each.value) for each in evaluation.history]
        panels.append(Panel(f"{title} on rows that are not trained on", "step", [Line(title, _ALIKE, measured)]))
    _write(path, panels)


def draw_cosines(path: Path, cosines: CosineHistogram) -> None:
    """Shares of right and of wrong pairs by their cosine, before training and under it after."""
    right_name, wrong_name = "alike", "not alike"
    if cosines.divided_at is not None:
        right_name, wrong_name = f"score above {cosines.divided_at:.3g}", f"score up to {cosines.divided_at:.3g}"
    _write(
        path,
        [
            Panel(
                f"Cosines {when} training",
                "cosine",
                [
                    Line(right_name, _ALIKE, _outline(cosines.edges, right)),
                    Line(wrong_name, _NOT_ALIKE, _outline(cosines.edges, wrong), dashed=True),
                ],
            )
            for when, right, wrong in (
                ("before", cosines.right_before, cosines.wrong_before),
                ("after", cosines.right_after, cosines.wrong_after),
            )
        ],
    )


def draw_search(path: Path, search: Search) -> None:
    """The metric against the temperature, one line for each loss, or else by trial; dashed: the 95 % intervals.

    Of trials that came to their end and differ from the first in temperature and loss alone.
    """
    finished = [trial for trial in search.trials if not trial.pruned]
    by_temperature = "temperature" in search.trials[0].choices
    if by_temperature:
        finished = [trial for trial in finished if _besides(trial) == _besides(search.trials[0])]
    losses = sorted({str(trial.choices.get("loss", "")) for trial in finished}) if by_temperature else [""]
    lines: list[Line] = []
    for loss, colour in zip(losses, (_ALIKE, _NOT_ALIKE), strict=False):
        chosen = [trial for trial in finished if not loss or trial.choices["loss"] == loss]
        placed = sorted((_across(trial, by_temperature), trial.number, trial) for trial in chosen)
        name = loss or TITLES[search.metric]
        lines.append(Line(name, colour, [(x, trial.metric) for x, _, trial in placed if trial.metric is not None]))
        for label, side in ((f"{name}, 95 % interval", _low), ("", _high)):
            ends = [(x, end) for x, _, trial in placed if (end := side(trial)) is not None]
            lines.append(Line(label, colour, ends, dashed=True))
    title = f"{TITLES[search.metric]} of the trials on rows set aside for the search"
    _write(path, [Panel(title, "temperature" if by_temperature else "trial", lines, logarithmic=by_temperature)])


def _besides(trial: SearchTrial) -> dict[str, float | int | str]:
    return {name: value for name, value in trial.choices.items() if name not in ("temperature", "loss")}


def _across(trial: SearchTrial, by_temperature: bool) -> float:
    return math.log10(float(trial.choices["temperature"])) if by_temperature else float(trial.number)


def _low(trial: SearchTrial) -> float | None:
    return trial.low


def _high(trial: SearchTrial) -> float | None:
    return trial.high


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    step = max(1, -(-len(points) // _MOST_POINTS))
    kept = [*points[:-1:step], *points[-1:]]
    return [(float(x), y) for x, y in kept]


def _outline(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    total = sum(counts) or 1
    points = [(edges[0], 0.0)]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        points += [(left, count / total), (right, count / total)]
    return [*points, (edges[-1], 0.0)]


def _write(path: Path, panels: Sequence[Panel]) -> None:
    height = _HEIGHT * len(panels)
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "width": str(_WIDTH), "height": str(height)}
    style = {"font-family": "sans-serif", "font-size": "12", "fill": _INK}
    picture = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg"} | size | style)
    ET.SubElement(picture, "title").text = "; ".join(panel.title for panel in panels)
    ET.SubElement(picture, "rect", width="100%", height="100%", fill="white")
    for number, panel in enumerate(panels):
        _draw(ET.SubElement(picture, "g", transform=f"translate(0 {number * _HEIGHT})"), panel)
    ET.indent(picture)
    path.write_text(ET.tostring(picture, encoding="unicode") + "\n", encoding="utf-8")


def _draw(group: ET.Element, panel: Panel) -> None:
    points = [point for line in panel.lines for point in line.points if math.isfinite(point[1])]
    across = _ticks([x for x, _ in points])
    up = _ticks([y for _, y in points])
    x_of = _scale(across, _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(up, _HEIGHT - _BOTTOM, _TOP)
    _text(group, panel.title, _LEFT, 20, anchor="start", weight="bold")
    for value in up:
        y = y_of(value)
        ET.SubElement(group, "path", d=f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", stroke="#e0e0e0")
        _text(group, f"{value:g}", _LEFT - 8, y + 4, anchor="end")
    for value in across:
        shown = f"{10**value:.2g}" if panel.logarithmic else f"{value:g}"
        _text(group, shown, x_of(value), _HEIGHT - _BOTTOM + 18)
    _text(group, panel.across, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6)
    for number, line in enumerate(panel.lines):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points if math.isfinite(y))
        drawn = {"points": path, "fill": "none", "stroke": line.colour, "stroke-width": "1.8"}
        ET.SubElement(group, "polyline", drawn | ({"stroke-dasharray": "5 3"} if line.dashed else {}))
        if len(panel.lines) > 1:
            _text(group, line.name, _WIDTH - _RIGHT, 20 + 16 * number, anchor="end", colour=line.colour)


def _text(
    group: ET.Element, text: str, x: float, y: float, *, anchor: str = "middle", weight: str = "normal",
    colour: str = _INK,
) -> None:  # fmt: skip
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-weight": weight, "fill": colour}
    ET.SubElement(group, "text", place).text = text


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0])
