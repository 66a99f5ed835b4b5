"""Draws the figures of docs/loss.md, with numbers that the real loss gave.

`make figures` (or `python -m docs.figures`) writes them into docs/figures; a test fails while one says something else
than it would when drawn anew. Each figure has two functions: one that measures, one that draws what was measured.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from workers.training.losses import ContrastiveLoss, NTXentLoss, SupConLoss

FOLDER = Path(__file__).parent / "figures"

# The palette of Okabe and Ito 2008, which colour-blind readers can tell apart; signs and marks repeat what it says.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#a1457d"
INK, SOFT, EDGE, CARD, GREY = "#1f2328", "#59636e", "#d0d7de", "#ffffff", "#d8dde3"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "likeness",
    "font.family": "sans-serif",
    # The first is what widths are measured with, and as wide as any of the others.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": EDGE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 9.0  # inches: GitHub's column, at the size of its text


def forces(
    loss: ContrastiveLoss, anchor: Tensor, label: int, references: Tensor, labels: Tensor, own: int | None = None
) -> Tensor:
    """∂loss/∂cos of one anchor with each reference, (C,): above 0 it is pushed away, below 0 pulled close.

    anchor (D,) and references (C, D) of length 1. `own`: the reference that is the anchor itself.
    """
    references = references.clone().requires_grad_()
    loss(anchor[None], torch.tensor([label]), references, labels, anchor_offset=own).backward()
    assert references.grad is not None  # noqa: S101 (backward has just been called)
    # With z the anchor, ∂cos/∂y = z − cos·y on the unit sphere, whose product with z is 1 − cos².
    cosines = references.detach() @ anchor
    return (references.grad @ anchor) / (1 - cosines**2).clamp_min(1e-9)


# Who is compared with whom


class Batch(NamedTuple):
    """A small batch and which of its texts are compared with which."""

    title: str
    names: Sequence[str]
    labels: Sequence[int]
    asked: Mapping[int, Sequence[int]]  # an anchor, and the texts that it is compared with


_EVERY = range(6)
_PAIRS = (("a", "b", "c", "a′", "b′", "c′"), (0, 1, 2, 0, 1, 2))
BATCHES = (
    Batch("Labelled texts", ("a", "a", "b", "b", "c"), (0, 0, 1, 1, 2), dict.fromkeys(range(5), range(5))),
    Batch("Pairs, symmetric: null", *_PAIRS, dict.fromkeys(_EVERY, _EVERY)),
    Batch("Pairs, symmetric: false", *_PAIRS, dict.fromkeys(_EVERY[:3], _EVERY[3:])),
    Batch("Pairs, symmetric: true", *_PAIRS, {row: _EVERY[3:] if row < 3 else _EVERY[:3] for row in _EVERY}),
)


def comparisons(batch: Batch) -> list[list[int]]:
    """What the loss does to each anchor (row) and text (column): 1 pulls them together, −1 pushes them apart."""
    size = len(batch.labels)
    directions, labels = torch.eye(size, dtype=torch.float64), torch.tensor(batch.labels)
    matrix = torch.zeros(size, size, dtype=torch.long)
    for row, columns in batch.asked.items():
        among = torch.tensor(columns)
        own = list(columns).index(row) if row in columns else None
        force = forces(NTXentLoss(), directions[row], batch.labels[row], directions[among], labels[among], own)
        matrix[row, among] = -force.sign().long()
    return matrix.tolist()


def draw_comparisons() -> Figure:
    """A matrix for each form of the loss."""
    figure, panels = _card(height=3.25, columns=len(BATCHES), left=0.04, right=0.985, bottom=0.2, top=0.79, wspace=0.2)
    for axes, batch in zip(panels, BATCHES, strict=True):
        _draw_matrix(axes, batch)
    figure.text(0.02, 0.945, "Row: the text that asks. Column: what it is compared with.", va="center", color=SOFT)
    entries = (
        (BLUE, "+", "positive"),
        (ORANGE, "−", "negative"),
        (GREY, "", "itself"),
        (CARD, "", "no part of the loss"),
    )
    for left, (colour, sign, meaning) in zip((0.2, 0.34, 0.48, 0.6), entries, strict=True):
        key = figure.add_axes((left, 0.055, 0.022, 0.022 * WIDTH / 3.25))
        key.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
        key.axis("off")
        _draw_cell(key, 0, 0, colour, sign)
        figure.text(left + 0.03, 0.086, meaning, va="center")
    return figure


def _draw_matrix(axes: Axes, batch: Batch) -> None:
    matrix, size = comparisons(batch), len(batch.names)
    for row in range(size):
        for column in range(size):
            cell = matrix[row][column]
            colour = GREY if row == column else {1: BLUE, -1: ORANGE, 0: CARD}[cell]
            _draw_cell(axes, column, row, colour, {1: "+", -1: "−", 0: ""}[cell])
    axes.set_title(batch.title, fontsize=10, pad=20)
    axes.set(xlim=(-0.55, 5.55), ylim=(5.55, -0.55), aspect="equal")
    axes.set_xticks(range(size), batch.names)
    axes.set_yticks(range(size), batch.names)
    axes.tick_params(length=0, pad=1, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: Axes, x: int, y: int, colour: str, sign: str) -> None:
    axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, edgecolor=EDGE, linewidth=0.8))
    axes.text(x, y, sign, ha="center", va="center_baseline", color=CARD if colour == BLUE else INK, fontsize=11)


# Temperature

TEMPERATURES = (0.01, 0.05, 0.2, 1.0)
COSINES = tuple(step / 20 for step in range(17))  # of the negatives: 0, 0.05, … 0.8
_MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))


def repulsion(temperature: float) -> list[float]:
    """Each negative's share of all that pushes an anchor away, for negatives at COSINES."""
    cosines = torch.tensor([0.7, *COSINES], dtype=torch.float64)  # the first is a positive
    anchor = torch.eye(len(cosines) + 1, dtype=torch.float64)[0]
    labels = torch.tensor([0, *range(1, len(cosines))])
    pushes = forces(NTXentLoss(temperature), anchor, 0, _at_cosines(cosines), labels)[1:]
    return (pushes / pushes.sum()).tolist()


def draw_temperature() -> Figure:
    """The share against the negative's cosine, a line for each temperature."""
    figure, (axes,) = _card(height=3.9, columns=1, left=0.085, right=0.7, bottom=0.15, top=0.88)
    for temperature, (colour, mark) in zip(TEMPERATURES, _MARKS, strict=True):
        shares = [100 * share for share in repulsion(temperature)]
        axes.plot(COSINES, shares, color=colour, marker=mark, markersize=4.5, linewidth=1.6, clip_on=False, zorder=3)
        label = f"τ = {temperature:g}: the nearest takes {shares[-1]:.0f} %"
        axes.text(0.825, shares[-1], label, color=INK, va="center")
    axes.set(xlim=(0, 0.8), ylim=(0, 100), xlabel="cosine of anchor and negative")
    axes.set_yticks(range(0, 101, 20), [f"{share} %" for share in range(0, 101, 20)])
    axes.grid(axis="y", color=EDGE, linewidth=0.6)
    figure.text(0.02, 0.945, "Each negative’s share of what pushes an anchor away, of 17 negatives", va="center")
    return figure


# Denominators


class Term(NamedTuple):
    """One pair of the anchor: what its denominator adds up, and what the pair costs."""

    loss: str
    positive: str
    summands: Mapping[str, float]  # exp(cos/τ) of each text in the denominator
    cost: float


TEXTS: Mapping[str, float] = {"p": 0.9, "q": 0.6, "m": 0.5, "n": 0.4}  # their cosines to the anchor
POSITIVES = ("p", "q")
TEMPERATURE = 0.25


def terms() -> list[Term]:
    """The anchor's two pairs in NT-Xent, then in SupCon."""
    return [_term(kind, positive) for kind in (NTXentLoss, SupConLoss) for positive in POSITIVES]


def anchor_loss(kind: type[ContrastiveLoss], texts: Mapping[str, float], positives: Sequence[str]) -> float:
    """The loss of one anchor among texts at these cosines to it."""
    references = _at_cosines(torch.tensor(list(texts.values()), dtype=torch.float64))
    labels = torch.tensor([0 if name in positives else 1 for name in texts])
    anchor = torch.eye(references.shape[1], dtype=torch.float64)[0]
    return float(kind(TEMPERATURE)(anchor[None], torch.tensor([0]), references, labels))


def _term(kind: type[ContrastiveLoss], positive: str) -> Term:
    # A pair's own cost: the other positives are left out, or, for SupCon, stay in the denominator as negatives do.
    left_out = set(POSITIVES) - {positive} if kind is NTXentLoss else set()
    texts = {name: cosine for name, cosine in TEXTS.items() if name not in left_out}
    logits = torch.tensor(list(texts.values()), dtype=torch.float64) / TEMPERATURE
    summands = dict(zip(texts, logits.exp().tolist(), strict=True))
    name = "NT-Xent" if kind is NTXentLoss else "SupCon"
    return Term(name, positive, summands, anchor_loss(kind, texts, [positive]))


def draw_denominators() -> Figure:
    """A bar for each pair: its summands side by side, the pair's own in the colour of positives."""
    figure, (axes,) = _card(height=3.3, columns=1, left=0.185, right=0.72, bottom=0.05, top=0.8)
    longest = max(sum(term.summands.values()) for term in terms())
    for place, term in zip((0, 1, 2.4, 3.4), terms(), strict=True):
        _draw_bar(axes, place, term)
        total, own = sum(term.summands.values()), term.summands[term.positive]
        text = f"{own:.1f} / {total:.1f} = {own / total:.2f}, costs {term.cost:.2f}"
        axes.text(longest * 1.02, place, text, va="center")
        axes.text(-longest * 0.015, place, f"{term.loss}, pair (i, {term.positive})", ha="right", va="center")
    axes.set(xlim=(0, longest), ylim=(3.9, -0.5))
    axes.axis("off")
    cosines = ", ".join(f"{name} {cosine:g}" for name, cosine in TEXTS.items())
    figure.text(
        0.02,
        0.935,
        "What a pair’s denominator adds up: exp(cos / τ) of each text in it, the numerator in blue",
        va="center",
    )
    note = f"Cosines to the anchor i: {cosines}; p and q have its label; τ = {TEMPERATURE:g}"
    figure.text(0.02, 0.86, note, va="center", color=SOFT)
    return figure


def _draw_bar(axes: Axes, place: float, term: Term) -> None:
    left = 0.0
    for name, width in term.summands.items():
        colour = BLUE if name == term.positive else GREY if name in POSITIVES else ORANGE
        axes.barh(place, width, 0.72, left=left, color=colour, edgecolor=CARD, linewidth=1.2)
        axes.text(left + width / 2, place, name, ha="center", va="center", color=CARD if colour == BLUE else INK)
        left += width


# All of them

FIGURES: Mapping[str, tuple[str, Callable[[], Figure]]] = {
    "comparisons": ("Which texts of a batch are compared", draw_comparisons),
    "temperature": ("Temperature and the nearest negatives", draw_temperature),
    "denominators": ("The denominators of NT-Xent and SupCon", draw_denominators),
}


def drawn(name: str) -> str:
    """A figure as SVG: the same text each time, for one version of Matplotlib."""
    title, draw = FIGURES[name]
    with mpl.rc_context(STYLE):
        file = io.StringIO()
        draw().savefig(file, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _card(*, height: float, columns: int, **margins: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure on a light ground with a thin edge, readable on a dark page too, and its axes side by side."""
    figure = Figure(figsize=(WIDTH, height), facecolor=CARD)
    figure.patch.set(edgecolor=EDGE, linewidth=2)  # half of it lies outside
    panels = figure.subplots(1, columns, squeeze=False)[0].tolist()
    figure.subplots_adjust(**margins)
    return figure, panels


def _at_cosines(cosines: Tensor) -> Tensor:
    """Unit vectors (n, n + 1) at these cosines (n,) to the first axis, each in a plane of its own."""
    return torch.cat([cosines[:, None], (1 - cosines**2).sqrt().diag()], dim=1)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        (FOLDER / f"{name}.svg").write_text(drawn(name))
