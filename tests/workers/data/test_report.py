from __future__ import annotations

import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from api_schemas.errors import ERROR_CODES
from api_schemas.reports import Report
from tests.workers.data.rows import words
from workers.data.inspection import inspect
from workers.data.lengths import Measure
from workers.data.page import print_report
from workers.data.plan import Setting, batch_size_asked

MEASURE = Measure("tiny/words", words, max_seq_length=6)


def of(
    folder: Path, rows: Iterable[Any], evaluation: Iterable[Any] | None = None, *, batch_size: int | None = None
) -> Report:
    def written(name: str, content: Iterable[Any]) -> Path:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    setting = Setting("tiny/words", 6, batch_size_asked(batch_size))
    path = written("rows.jsonl", rows)
    other = None if evaluation is None else written("evaluation.jsonl", evaluation)
    return inspect(path, setting, measure=MEASURE, evaluation=other).report


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"anchor": f"question {n}", "positive": f"answer {n}"} for n in range(start, start + count)]


def labelled(**counts: int) -> list[dict[str, str]]:
    return [{"text": f"{label} {n}", "label": label} for label, count in counts.items() for n in range(count)]


def reasons(report: Report) -> list[str]:
    assert report.verdict.usable == (not report.verdict.reasons)
    assert all(reason.code in ERROR_CODES for reason in report.verdict.reasons)
    return [reason.code for reason in report.verdict.reasons]


def warnings(report: Report) -> dict[str, str]:
    return {warning.code: warning.message for warning in report.warnings}


# The verdict


def test_a_good_file_has_nothing_to_be_said_against_it(tmp_path: Path) -> None:
    report = of(tmp_path, pairs(100))
    assert (reasons(report), warnings(report), report.refused) == ([], {}, [])
    assert (report.rows, report.format, report.refused_rows) == (100, "pairs", 0)


def test_refused_rows_are_counted_by_kind_and_the_first_are_listed(tmp_path: Path) -> None:
    bad = [{"anchor": "a", "positive": ""}] * 3 + [{"anchor": "a"}] * 150
    report = of(tmp_path, pairs(10) + bad)
    assert reasons(report) == ["row_empty_text"]
    assert report.refused_rows == 153
    assert [(kind.code, kind.field, kind.count, len(kind.first)) for kind in report.refused] == [
        ("row_missing_field", "positive", 150, 100),
        ("row_empty_text", "positive", 3, 3),
    ]
    assert report.refused[1].first[0].row == 11


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        pytest.param([], "empty_file", id="no rows"),
        pytest.param([{"anchor": f"a{n}", "positive": f"a{n}"} for n in range(9)], "no_positives", id="all alike"),
        pytest.param(labelled(spam=20), "single_label", id="one label only"),
        pytest.param(labelled(**{f"l{n}": 1 for n in range(20)}), "no_positives", id="every label once"),
        pytest.param(labelled(ham=1000, spam=8), "too_few_classes", id="hardly a second label"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(tmp_path: Path, rows: list[Any], code: str) -> None:
    assert reasons(of(tmp_path, rows)) == [code]


@pytest.mark.parametrize(("spam", "code"), [(24, "too_few_classes"), (32, "few_classes"), (64, None)])
def test_how_many_batches_hold_two_labels(tmp_path: Path, spam: int, code: str | None) -> None:
    """Of 1 000 rows in batches of 64, 16 batches; spam comes in groups of four."""
    report = of(tmp_path, labelled(ham=1000 - spam, spam=spam))
    assert code in [*reasons(report), *warnings(report), None]
    assert ("few_classes" in warnings(report)) == (code == "few_classes")
    assert report.verdict.usable == (code != "too_few_classes")


def test_a_larger_batch_cures_a_rare_label_and_a_tiny_one_is_refused(tmp_path: Path) -> None:
    rows = labelled(ham=1000, spam=8)
    assert reasons(of(tmp_path, rows, batch_size=512)) == []
    refused = of(tmp_path, labelled(ham=50, spam=50), batch_size=3)
    assert reasons(refused) == ["too_few_classes"]
    assert "4 or more" in refused.verdict.reasons[0].message


# The evaluation file


def test_an_evaluation_file_that_is_the_training_file_is_refused(tmp_path: Path) -> None:
    report = of(tmp_path, pairs(20), pairs(20))
    assert reasons(report) == ["evaluation_in_training"]
    assert report.overlap is not None
    assert report.overlap.identical


def test_so_is_one_that_stands_in_it_for_the_most_part(tmp_path: Path) -> None:
    report = of(tmp_path, pairs(20), pairs(11, start=14))
    assert reasons(report) == ["evaluation_in_training"]
    assert "6 of the evaluation file's 11 rows" in report.verdict.reasons[0].message


def test_a_smaller_overlap_is_a_warning_with_both_rows(tmp_path: Path) -> None:
    report = of(tmp_path, pairs(20), pairs(11, start=15))
    assert reasons(report) == []
    assert "10 of the evaluation file's 22 texts" in warnings(report)["evaluation_overlap"]
    assert "in row 1, and in row 16 of the training file" in warnings(report)["evaluation_overlap"]


def test_an_evaluation_file_that_cannot_be_used_is_a_reason(tmp_path: Path) -> None:
    assert reasons(of(tmp_path, pairs(20), [])) == ["empty_file"]


# Scored pairs


def scored(count: int) -> list[dict[str, Any]]:
    return [{"sentence1": f"one {n}", "sentence2": f"other {n}", "score": n / 4} for n in range(count)]


def test_scored_pairs_are_reported_and_not_trained_on(tmp_path: Path) -> None:
    report = of(tmp_path, [*scored(20), {"sentence1": "one", "sentence2": "one", "score": 5}])
    assert reasons(report) == ["pairs_with_score"]
    for word in ("validation_file", "data.format: pairs"):
        assert word in report.verdict.reasons[0].message
    assert (report.format, report.rows, report.refused_rows, report.training) == ("scored_pairs", 21, 0, None)
    assert report.scores is not None
    assert (report.scores.smallest, report.scores.median, report.scores.largest) == (0, 2.5, 5)
    assert warnings(report) == {}, "two equal texts with a high score are no mistake"

    printed = StringIO()
    print_report(Console(file=printed, width=100, color_system=None), "sts.csv", report)
    assert printed.getvalue().startswith("sts.csv  21 rows of scored pairs")
    assert "from 0 to 5, median 2.5" in printed.getvalue()


def test_scored_pairs_are_an_evaluation_file_like_any_other(tmp_path: Path) -> None:
    assert reasons(of(tmp_path, pairs(20), scored(9))) == []
    known = [{"sentence1": row["anchor"], "sentence2": row["positive"], "score": n} for n, row in enumerate(pairs(9))]
    assert reasons(of(tmp_path, pairs(20), known)) == ["evaluation_in_training"]


# Warnings


@pytest.mark.parametrize(
    ("rows", "code", "says"),
    [
        pytest.param(
            [*labelled(ham=9, spam=9), {"text": "ham 3", "label": "spam"}],
            "conflicting_labels",
            "1 text has two labels or more; the first is 'ham' in row 4 and 'spam' in row 19.",
            id="conflict",
        ),
        pytest.param(
            [*pairs(9), *pairs(2)],
            "duplicate_rows",
            "2 of 11 rows repeat an earlier one; the first is row 10, which equals row 1.",
            id="duplicates",
        ),
        pytest.param(
            [*pairs(9), *[{"anchor": f"same {n}", "positive": f"same {n}"} for n in range(3)]],
            "same_inputs",
            "3 rows have an anchor that equals its positive: rows 10–12. Remove them",
            id="same inputs",
        ),
        pytest.param(
            [{**row, "negative": row["positive"] if n in (2, 5) else f"no {n}"} for n, row in enumerate(pairs(9))],
            "negative_is_alike",
            "2 rows have a hard negative that equals the row's own anchor or positive: rows 3 and 6.",
            id="negatives",
        ),
        pytest.param(
            labelled(ham=9, spam=9, eggs=1, toast=1),
            "labels_once",
            "2 of 4 labels occur once.",
            id="once",
        ),
        pytest.param(
            labelled(ham=90, spam=10),
            "one_label_dominates",
            "90 % of the rows have the label 'ham'.",
            id="balance",
        ),
        pytest.param(
            [{"anchor": f"q{n}", "positive": f"answer {n % 4}"} for n in range(100)],
            "shared_texts",
            "About 73 pairs of rows in a batch of 25 share a text.",
            id="shared",
        ),
        pytest.param(
            [{**row, "anchor": row["anchor"] + " and so on for ever"} for row in pairs(9)],
            "texts_cut",
            "50 % of the texts are longer than the 6 tokens that are read, and 23 % of all tokens are cut.",
            id="cut",
        ),
    ],
)
def test_what_is_worth_changing_is_told_with_its_rows(tmp_path: Path, rows: list[Any], code: str, says: str) -> None:
    report = of(tmp_path, rows)
    assert reasons(report) == []
    assert says in warnings(report)[code]


def test_many_rows_are_not_all_named(tmp_path: Path) -> None:
    rows = [{"anchor": f"same {n}", "positive": f"same {n}"} for n in range(40)]
    rows = [row for each in zip(rows, pairs(40), strict=True) for row in each]
    assert (
        "40 rows have an anchor that equals its positive: rows 1, 3, 5, 7, 9 and more."
        in (warnings(of(tmp_path, rows))["same_inputs"])
    )


# What would be trained


def test_the_plan_is_what_a_job_resolves_auto_to(tmp_path: Path) -> None:
    plan = of(tmp_path, pairs(1000)).training
    assert plan is not None
    assert (plan.n_epochs, plan.batch_size, plan.steps) == (10, 64, 160)
    assert (plan.texts_per_step, plan.anchors_per_step) == (128, 128)


def test_a_row_left_over_makes_no_batch(tmp_path: Path) -> None:
    plan = of(tmp_path, pairs(65), batch_size=64).training
    assert plan is not None
    assert plan.steps == plan.n_epochs


def test_texts_and_anchors_of_other_formats(tmp_path: Path) -> None:
    def step(rows: list[Any]) -> tuple[int, int]:
        plan = of(tmp_path, rows, batch_size=8).training
        assert plan is not None
        return plan.texts_per_step, plan.anchors_per_step

    assert step([{**row, "negative": ["n1", "n2"]} for row in pairs(40)]) == (32, 16)
    assert step(labelled(ham=20, spam=20)) == (8, 8)
    assert step([{"text": f"text {n}"} for n in range(40)]) == (16, 16)


def test_the_report_is_json_and_comes_back(tmp_path: Path) -> None:
    report = of(tmp_path, labelled(ham=9, spam=9))
    assert Report(**json.loads(report.model_dump_json())) == report
