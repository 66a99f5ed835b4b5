"""The loss benchmark runs and prints what it promises; how fast anything is, is none of a test's business."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.loss import parse
from bench.loss_contestants import Case
from bench.loss_floors import floors
from bench.loss_results import Product, Results
from bench.rounds import Times, interleaved, ratio

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run of tiny batches prints, and its raw figures."""
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    options = ["--quick", "--no-plot", "--sizes", "16", "32", "--widths", "24", "--json", str(path)]
    command = [sys.executable, "-m", "bench.loss", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_everybody_agrees_on_each_batch(tiny_run: tuple[str, dict[str, Any]]) -> None:
    lines = re.findall(r"^N = (\d+), D = (\d+), (\d) per label, float32: .*", tiny_run[0], flags=re.MULTILINE)
    assert lines == [("16", "24", "2"), ("16", "24", "8"), ("32", "24", "2"), ("32", "24", "8")]
    assert "PML NTXentLoss agree (value within" in tiny_run[0]
    assert "NOT AGREE" not in tiny_run[0]


@pytest.mark.parametrize("heading", ["Median time", "Peak memory above the inputs"])
def test_each_implementation_has_a_column_and_each_size_a_row(
    tiny_run: tuple[str, dict[str, Any]], heading: str
) -> None:
    table = tiny_run[0].partition(f"## {heading}")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()
    names = ["Likeness tiled", "Likeness dense", "plain autograd", "PML SupConLoss", "PML NTXentLoss"]
    assert _cells(table[0]) == ["N", *names]
    assert [_cells(line)[0] for line in table[2:]] == ["16", "32"]
    assert all(all(_cells(line)) for line in table)


def test_the_machine_and_how_work_is_counted_are_named(tiny_run: tuple[str, dict[str, Any]]) -> None:
    for words in ("CPU: ", "torch ", "Load average", "Other programs", "4·N²·D operations", "fastest torch.mm"):
        assert words in tiny_run[0]


def test_a_floor_that_was_not_measured_is_neither_reached_nor_missed(tiny_run: tuple[str, dict[str, Any]]) -> None:
    rows = [_cells(line) for line in tiny_run[0].partition("## Floors")[2].splitlines() if line.startswith("| N =")]
    assert len(rows) > 10
    assert {tuple(row[2:]) for row in rows} == {("not measured", "")}


def test_raw_figures_have_each_round_and_the_memory_of_each_case(tiny_run: tuple[str, dict[str, Any]]) -> None:
    cases = tiny_run[1]["cases"]
    assert len(cases) == 5 * 2 * 2
    assert all(len(case["seconds_by_round"]) >= 1 for case in cases)
    assert all((case["bytes_above_inputs"] is None) == (case["per_label"] == 8) for case in cases)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sizes", "20"], "must be a multiple of 8"),
        (["--widths", "none"], "positive whole number"),
        (["--quick", "--plot", "figure.png"], "--plot draws a full run"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_only_a_full_run_draws_and_where_it_is_told() -> None:
    assert parse([]).plot == Path("docs/figures/loss-scaling.png")
    assert parse(["--plot", "elsewhere.png"]).plot == Path("elsewhere.png")
    assert [parse([option]).plot for option in ("--no-plot", "--quick")] == [None, None]


def test_a_ratio_is_taken_within_rounds() -> None:
    slow, fast = Times({1: 2.0, 2: 20.0, 3: 4.0}), Times({1: 1.0, 2: 10.0, 3: 2.0, 4: 1.0})
    assert ratio(slow, fast) == 2
    assert ratio(Times({0: 30.0}), fast) == 20


def test_each_work_takes_part_in_each_of_its_rounds() -> None:
    calls: list[str] = []
    works = {"fast": lambda: calls.append("fast"), "slow": lambda: calls.append("slow"), "long": lambda: None}
    first = {"fast": 0.001, "slow": 5.0, "long": 30.0}
    times = interleaved(works, first, lambda: None, lambda _: None)
    assert sorted(times["fast"].by_round) == list(range(1, 16))
    assert sorted(times["slow"].by_round) == [0, 1, 2]
    assert times["long"].by_round == {0: 30.0}
    assert calls[:4] == ["slow", "fast", "fast", "slow"]


def test_floors_are_reached_or_missed_by_what_was_measured() -> None:
    tiled = Case("tiled", 4096, 128, 2)
    large = Case("tiled", 16384, 128, 2)
    product = Product(1000, 16384, 128)
    results = Results(
        times={
            tiled: Times({1: 1.0}),
            tiled._replace(name="autograd"): Times({1: 5.5}),
            tiled._replace(per_label=8): Times({1: 1.7}),
            large: Times({1: 4 * 16384**2 * 128 / 1e9}),
        },
        products={product: Times({1: 1.0})},
        bytes_above_inputs={Case("tiled", 32768, 128, 2): 399_000_000},
    )
    found = {(one.where, one.asked): (one.measured, one.reached) for one in floors(results, [128], "float32")}
    assert found["N = 4096, D = 128, against plain autograd", "≥ 5× faster"] == ("5.5×", True)
    assert found["N = 4096, D = 128, 8 rows per label against 2", "≤ 1.6× the time"] == ("1.70×", False)
    assert found["N = 32768, D = 128", "< 400 MB above the inputs"] == ("399 MB", True)
    assert found["N = 16384, D = 128, arithmetic rate", "≥ 60 % of the matrix product's"] == ("50 %", False)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]
