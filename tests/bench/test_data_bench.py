"""The data benchmark runs and prints what it promises; how fast anything is, is none of a test's business."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from bench import data, data_pairs, data_stages
from bench.data_stages import Measured, StageFailedError, in_own_process
from bench.data_tables import FULL_FORM, TENTH, Drawn, Results, floors, growth_table

WORDS = [f"word{number}" for number in range(500)]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[str]], dict[str, Any]]:
    """What a run of few rows prints, as cells of its lines, and its raw figures."""
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        # A process for each stage takes longer than all that these few rows take.
        patch.setattr(data, "in_own_process", _in_own_process_if_it_imports_the_library)
        patch.setattr(data, "use_physical_cores", lambda: 1)
        patch.setattr(data, "_show", lambda heading, lines: printed.extend([f"## {heading}", *lines]))
        patch.setattr(sys, "argv", ["bench.data", "--rows", "2000", "--json", str(path)])
        data.main()
    return [_cells(line) for line in printed], json.loads(path.read_text())


def _in_own_process_if_it_imports_the_library(stage: str, *arguments: object) -> Measured:
    return in_own_process(stage, *arguments) if stage == "write" else data_stages.run(stage, *map(str, arguments))


def test_every_form_is_validated_with_and_without_the_report(tiny_run) -> None:
    forms = ["jsonl", "csv", "parquet", "jsonl.gz", "jsonl.zst"]
    rows = [cells[:2] for cells in tiny_run[0] if cells[0] in forms]
    assert rows == [[form, work] for form in forms for work in ("validation", "validation with the report")]


def test_batches_of_every_kind_are_drawn_to_the_end(tiny_run) -> None:
    drawn = {(one["kind"], one["batch_size"], one["bucket_by_length"]): one["others"] for one in tiny_run[1]["drawn"]}
    assert drawn.keys() == {tuple(how) for how in data.DRAWN}
    assert {others["rows drawn"] for (kind, *_), others in drawn.items() if kind != "labels"} == {2000}
    assert all(0 < others["held"] <= others["held at most"] for others in drawn.values())
    assert drawn["pairs", 64, True]["padding"] < drawn["pairs", 64, False]["padding"]


def test_texts_are_short_and_different(tiny_run) -> None:
    others = tiny_run[1]["prepared"]["others"]
    assert 10 < others["tokens a text"] < 14
    assert others["distinct"] > 0.99 * 4000


def test_floors_are_not_measured_on_few_rows(tiny_run) -> None:
    asked = [cells for cells in tiny_run[0] if len(cells) == 4 and cells[1].startswith("<")]
    assert len(asked) == 9
    assert {tuple(cells[2:]) for cells in asked} == {("not measured", "")}


def test_raw_figures_have_the_machine_and_every_file(tiny_run) -> None:
    raw = tiny_run[1]
    assert raw["machine"][0].startswith("CPU: ")
    assert {one["file"]: one["rows"] for one in raw["judged"]} == {
        FULL_FORM: 2000,
        TENTH: 200,
        **dict.fromkeys(["pairs.csv", "pairs.parquet", "pairs.jsonl.gz", "pairs.jsonl.zst"], 400),
    }


def test_floors_are_reached_or_missed_by_what_was_measured() -> None:
    results = Results(
        files=Measured(rows=200_000),
        judged={
            ("validate", FULL_FORM): Measured(200_000, seconds=11.0, peak_bytes=999_000_000),
            ("inspect", FULL_FORM): Measured(200_000, seconds=13.0, peak_bytes=1_001_000_000),
        },
        prepared=Measured(200_000, seconds=37.0),
        drawn={Drawn("pairs", 64, True): Measured(others={"padding": 0.09})},
    )
    assert [(one.measured, one.reached) for one in floors(results)] == [
        ("55 s", True),
        ("999 MB", True),
        ("65 s", False),
        ("1,001 MB", False),
        ("185 s", False),
        ("0 MB", True),
        ("9.0 %", True),
    ]


def test_growth_is_of_what_came_after_the_imports() -> None:
    small, large = (Measured(imported_bytes=90_000_000, peak_bytes=peak) for peak in (100_000_000, 120_000_000))
    judged = {
        (stage, name): one for stage in ("validate", "inspect") for name, one in ((TENTH, small), (FULL_FORM, large))
    }
    assert [_cells(line)[1:] for line in growth_table(Results(judged=judged))[2:]] == [["10 MB", "30 MB", "3.00×"]] * 2


def test_a_seed_gives_the_same_texts() -> None:
    assert list(data_pairs.pairs(50, WORDS)) == list(data_pairs.pairs(50, WORDS))
    assert list(data_pairs.pairs(50, WORDS)) != list(data_pairs.pairs(50, WORDS, seed=1))


def test_some_labels_are_frequent_and_some_are_rare() -> None:
    labels = [row.label for row in data_pairs.labelled(5000, WORDS)]
    counts = sorted(map(labels.count, set(labels)))
    assert len(counts) > 500
    assert counts[-1] > 20 * counts[0]


def test_a_triplet_has_three_texts() -> None:
    assert [len(row.inputs) for row in islice(data_pairs.triplets(9, WORDS), 3)] == [3, 3, 3]


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("")
    with pytest.raises(StageFailedError, match="The file holds no rows"):
        in_own_process("validate", path)


@pytest.mark.parametrize("arguments", [["--rows", "999"], ["--rows", "many"], ["--rows", "2000", "--quick"]])
def test_a_wrong_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        data.parse(arguments)
    assert exit_.value.code == 2
    assert "--rows" in capsys.readouterr().err


def test_a_quick_run_has_fewer_rows() -> None:
    assert [data.parse(arguments).rows for arguments in ([], ["--quick"], ["--rows", "5000"])] == [
        1_000_000,
        20_000,
        5000,
    ]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]
