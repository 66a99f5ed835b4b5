"""What docs/loss.md says of the loss is what the loss does, and its figures are those that the code draws."""

import contextlib
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

from api_schemas.methods import ContrastiveLoss, Method
from docs import figures
from tests.markdown import ROOT, code_blocks
from workers.training.losses import LossStatistics, NTXentLoss, SupConLoss

PAGE = ROOT / "docs" / "loss.md"
TEXT = PAGE.read_text()
#: alt text and file of each figure on the page
SHOWN = re.findall(r"!\[([^\]]+)\]\((figures/\w+\.svg)\)", TEXT)


# The words and numbers of the page


def test_the_script_prints_what_the_page_shows() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_blocks(PAGE, "python")[0], {})
    assert printed.getvalue() == code_blocks(PAGE, "text")[0]


def test_the_costs_of_the_worked_example_are_those_of_its_pairs() -> None:
    for (angle, label), costs in _costs().items():
        each = ", ".join(f"{cost:.4f}" for cost in costs)
        assert f"| {angle}° | {label} | {each} | {_mean(costs):.4f} |\n" in TEXT


def test_the_averages_of_the_worked_example_follow_from_its_costs() -> None:
    by_anchor = list(_costs().values())
    by_label = [_mean([cost for key, costs in _costs().items() if key[1] == name for cost in costs]) for name in "ab"]
    pair, anchor = _mean([cost for costs in by_anchor for cost in costs]), _mean([_mean(costs) for costs in by_anchor])
    below = TEXT[TEXT.index("`pair` is the mean of") : TEXT.index("## Memory")]
    expected = [f"{average:.4f}" for average in (pair, anchor, *by_label, _mean(by_label))]
    assert re.findall(r"\d\.\d{4}", below) == expected


@pytest.mark.parametrize(("ask", "floor"), [("all", "4.84"), ("anchors", "4.16")])
def test_texts_that_all_point_one_way_cost_what_the_page_says(ask: str, floor: str) -> None:
    one_way, rows = torch.ones(64, 3), torch.arange(64)
    if ask == "all":
        value = NTXentLoss(0.05)(one_way.repeat(2, 1), rows.repeat(2))
    else:
        value = NTXentLoss(0.05)(one_way, rows, one_way, rows)
    assert f"{float(value):.2f}" == floor
    assert floor in TEXT


def test_one_direction_is_the_cross_entropy_over_cosines_and_both_are_their_mean() -> None:
    torch.manual_seed(0)
    questions, answers, rows = torch.randn(7, 16), torch.randn(7, 16), torch.arange(7)
    scores = F.normalize(questions) @ F.normalize(answers).T / 0.05
    there, back = F.cross_entropy(scores, rows), F.cross_entropy(scores.T, rows)
    assert NTXentLoss(0.05)(questions, rows, answers, rows).item() == pytest.approx(there.item(), abs=1e-5)
    both = NTXentLoss(0.05, symmetric=True)(questions, rows, answers, rows).item()
    assert both == pytest.approx((there + back).item() / 2, abs=1e-5)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_lowest_cost_of_a_label_is_0_or_log_of_its_texts_less_one(k: int) -> None:
    poles, labels = torch.tensor([[1.0], [-1.0]]).repeat_interleave(k, 0), torch.tensor([0, 1]).repeat_interleave(k)
    assert NTXentLoss(0.05)(poles, labels).item() == pytest.approx(0, abs=1e-6)
    assert SupConLoss(0.05)(poles, labels).item() == pytest.approx(math.log(k - 1), abs=1e-6)


def test_every_field_of_a_jobs_loss_has_its_line() -> None:
    fields = _first_cells("In a job")
    assert set(ContrastiveLoss.model_fields) == set(fields)
    method = json.loads(code_blocks(PAGE, "json")[0])
    assert list(method["contrastive"]["loss"]) == fields
    assert Method(**method).contrastive.loss.memory_size == 4096


def test_every_statistic_has_its_line() -> None:
    expected = [field.name for field in dataclasses.fields(LossStatistics)]
    assert sorted(_first_cells("What a step says about itself")) == sorted(expected)


def test_links_within_the_page_lead_to_headings() -> None:
    headings = re.findall(r"^##+ (.+)$", TEXT, flags=re.MULTILINE)
    targets = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert linked
    assert set(linked) <= targets


# The figures


def test_the_page_shows_every_figure_and_says_what_is_on_it() -> None:
    assert [Path(file).stem for _, file in SHOWN] == list(figures.FIGURES)
    assert all(len(alt.split()) > 20 for alt, _ in SHOWN)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_says_what_it_would_if_drawn_now(name: str) -> None:
    # Texts, not bytes: another version of Matplotlib may draw the same lines in other words.
    assert _texts((figures.FOLDER / f"{name}.svg").read_text()) == _texts(figures.drawn(name)), "run `make figures`"


def test_a_figure_is_the_same_each_time_it_is_drawn() -> None:
    assert figures.drawn("denominators") == figures.drawn("denominators")


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Labelled texts", ["·+−−−", "+·−−−", "−−·+−", "−−+·−", "·····"]),
        ("Pairs, symmetric: null", ["·−−+−−", "−·−−+−", "−−·−−+", "+−−·−−", "−+−−·−", "−−+−−·"]),
        ("Pairs, symmetric: false", ["···+−−", "···−+−", "···−−+", "······", "······", "······"]),
        ("Pairs, symmetric: true", ["···+−−", "···−+−", "···−−+", "+−−···", "−+−···", "−−+···"]),
    ],
)
def test_the_matrices_are_those_of_the_definition(title: str, expected: list[str]) -> None:
    batch = next(batch for batch in figures.BATCHES if batch.title == title)
    found = ["".join({1: "+", -1: "−", 0: "·"}[cell] for cell in row) for row in figures.comparisons(batch)]
    assert found == expected


@pytest.mark.parametrize("temperature", figures.TEMPERATURES)
def test_negatives_share_the_repulsion_as_a_softmax_of_their_scores(temperature: float) -> None:
    scores = torch.tensor(figures.COSINES, dtype=torch.float64) / temperature
    assert figures.repulsion(temperature) == pytest.approx(scores.softmax(0).tolist(), abs=1e-12)


def test_the_shares_in_the_alt_text_are_those_measured() -> None:
    [alt] = [alt for alt, file in SHOWN if "temperature" in file]
    shares = [figures.repulsion(temperature)[-1] for temperature in figures.TEMPERATURES]
    shown = [round(100 * share) for share in (*shares, figures.repulsion(1.0)[0])]
    assert [int(percent) for percent in re.findall(r"(\d+) %", alt)] == shown


@pytest.mark.parametrize("kind", [NTXentLoss, SupConLoss])
def test_the_pairs_of_the_denominators_average_to_the_loss(kind: type[NTXentLoss] | type[SupConLoss]) -> None:
    name = "NT-Xent" if kind is NTXentLoss else "SupCon"
    terms = [term for term in figures.terms() if term.loss == name]
    for term in terms:
        share = term.summands[term.positive] / sum(term.summands.values())
        assert term.cost == pytest.approx(-math.log(share), abs=1e-12)
    whole = figures.anchor_loss(kind, figures.TEXTS, figures.POSITIVES)
    assert sum(term.cost for term in terms) / 2 == pytest.approx(whole, abs=1e-12)


def _costs() -> dict[tuple[int, str], list[float]]:
    """What the pairs of each anchor of the worked example cost: each alone with its negatives."""
    angles = torch.deg2rad(torch.tensor([0, 10, 20, 50, 60, 80], dtype=torch.float64))
    vectors, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 0, 1, 1, 2])
    costs: dict[tuple[int, str], list[float]] = {}
    for anchor, key in enumerate([(0, "a"), (10, "a"), (20, "a"), (50, "b"), (60, "b")]):
        alike = labels == labels[anchor]
        negatives = torch.nonzero(~alike).flatten().tolist()
        for positive in torch.nonzero(alike).flatten().tolist():
            if positive == anchor:
                continue
            among = [positive, *negatives]
            cost = NTXentLoss(0.1)(vectors[anchor, None], labels[anchor, None], vectors[among], labels[among])
            costs.setdefault(key, []).append(float(cost))
    return costs


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _first_cells(heading: str) -> list[str]:
    """The `names` that lines of the first table below a heading begin with."""
    section = TEXT[TEXT.index(f"\n## {heading}\n") :]
    return re.findall(r"^\| `(\w+)` \|", section[: section.index("\n## ", 1)], flags=re.MULTILINE)


def _texts(svg: str) -> list[str]:
    # Written by this project, read in its own tests.
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
