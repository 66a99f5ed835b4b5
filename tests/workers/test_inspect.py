"""`likeness inspect`, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from api_schemas.defaults import ADAPTER_LEARNING_RATE, SCRATCH_LEARNING_RATE
from api_schemas.reports import Report
from tests import command_line
from tests.encoders.tiny_encoder import write_tiny_encoder
from workers.inspect import main

PAIRS = [{"anchor": f"question {n}", "positive": f"answer {n}"} for n in range(40)]


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, in this process and in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Done:
        command_line.parse(["inspect", *arguments])
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


def typed(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as it is typed, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "service", "inspect", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        cwd=cwd,
    )


def write(path: Path, rows: list[dict[str, Any]] = PAIRS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def test_a_good_file_is_told_on_a_page(tmp_path: Path) -> None:
    done = typed(write(tmp_path / "pairs.jsonl"), "--no-probe", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pairs.jsonl  40 rows of pairs")
    for part in ("It can be trained on", "What would be trained", "Tokens a text", "read this far", "not measured"):
        assert part in done.stdout


def test_a_bad_file_ends_with_one_and_the_first_rows_of_each_kind(inspect: Callable[..., Done], tmp_path: Path) -> None:
    bad = [*PAIRS, {"anchor": "a", "positive": " "}, {"anchor": "b"}]
    done = inspect(write(tmp_path / "pairs.jsonl", bad))
    assert (done.returncode, done.stderr) == (1, "")
    assert "It can't be trained on" in done.stdout
    assert "Row 41: 'positive' is empty. Fill it or remove the row." in done.stdout
    assert "Row 42: has no 'positive'. Add it." in done.stdout
    assert "What would be trained" not in done.stdout


def test_json_is_the_wire_model_with_what_was_measured(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "models/tiny/bert")
    name = write(tmp_path / "pairs.jsonl")
    done = typed(
        name, "--json", "--model", "tiny/bert", "--batch-size", "8",
        cwd=tmp_path, LIKENESS_BASE_MODELS_DIR=str(tmp_path / "models"),
    )  # fmt: skip
    report = Report(**json.loads(done.stdout))
    assert report.training is not None
    assert (report.training.model, report.training.batch_size, report.training.steps) == ("tiny/bert", 8, 50)
    assert report.estimate is not None, report.estimate_missing
    assert report.estimate.seconds == pytest.approx(50 * report.estimate.seconds_per_step)
    assert report.estimate.measured_rows == 8
    assert 10e6 < report.estimate.peak_bytes < 10e9
    assert report.token_lengths is not None
    assert report.token_lengths.max_seq_length == 48


def test_columns_and_format_can_be_told(inspect: Callable[..., Done], tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", [{"title": f"t{n}", "body": f"b{n}"} for n in range(40)])
    told = ("--format", "pairs", "--column", "anchor=title", "--column", "positive=body", "--no-probe")
    assert inspect(name).returncode == 1
    assert inspect(name, *told).returncode == 0


def test_an_evaluation_file_is_compared(inspect: Callable[..., Done], tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl")
    done = inspect(name, "--evaluation", name, "--no-probe")
    assert done.returncode == 1
    assert "The evaluation file is the training file" in done.stdout


def test_a_relevance_file_is_told_with_its_texts(inspect: Callable[..., Done], tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": f"answer {n}"} for n in range(60)])
    write(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": f"question {n}"} for n in range(60)])
    for name, numbers in {"train.tsv": range(50), "test.tsv": range(49, 60)}.items():
        rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (tmp_path / name).write_text("\n".join(rows))
    texts = ("--corpus", "corpus.jsonl", "--queries", "queries.jsonl")

    done = inspect("train.tsv", *texts, "--evaluation", "test.tsv", "--no-probe", "--json")

    report = Report(**json.loads(done.stdout))
    assert (done.returncode, report.format, report.rows, report.verdict.usable) == (0, "pairs", 50, True)
    assert report.overlap is not None
    assert (report.overlap.rows, report.overlap.rows_in_training) == (11, 1)
    assert report.training is not None
    assert report.token_lengths is not None

    alone = inspect("train.tsv", "--no-probe")
    assert alone.returncode == 1
    assert alone.stdout.startswith("train.tsv  50 rows of relevance judgements")
    assert "--corpus and --queries" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.jsonl"], "There is no file 'missing.jsonl'."),
        (["."], "'.' is a directory. Name a file of rows."),
        (["/dev/null"], "is no regular file"),
        (["rows.jsonl", "--evaluation", "gone.jsonl"], "There is no file 'gone.jsonl'."),
        (["rows.jsonl", "--model", "nobody/knows"], "There is no base model 'nobody/knows'."),
        (["rows.jsonl", "--model", "adapter"], "The file holds texts, and adapter reads vectors."),
        (["rows.jsonl", "--format", "poems"], "--format must be one of"),
        (["rows.jsonl", "--column", "anchor"], "must be ROLE=NAME, such as anchor=title."),
        (["rows.jsonl", "--column", "anchor=a", "--column", "anchor=b"], "names 'anchor' twice"),
        (["rows.jsonl", "--column", "[/bold]=a"], "'[/bold]'"),
        (["rows.jsonl", "--corpus", "rows.jsonl"], "--corpus and --queries go together"),
        (["rows.jsonl", "--corpus", "gone.jsonl", "--queries", "rows.jsonl"], "There is no file 'gone.jsonl'."),
        (["rows.jsonl", "--corpus", "rows.jsonl", "--queries", "rows.jsonl", "--format", "pairs"], "leave them out"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_no_traceback(
    inspect: Callable[..., Done], tmp_path: Path, arguments: list[str], says: str
) -> None:
    write(tmp_path / "rows.jsonl")
    done = inspect(*arguments, "--no-probe")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(inspect: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / write(tmp_path / "rows.jsonl")).chmod(0)
    done = inspect("rows.jsonl")
    assert (done.returncode, done.stderr.splitlines()[1:]) == (2, [])
    assert "permission denied" in done.stderr


def test_what_a_file_says_cannot_steer_the_terminal(inspect: Callable[..., Done], tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "\x1b[31mred\x1b]0;title\x07" if n % 2 else "[bold]b"} for n in range(20)]
    done = inspect(write(tmp_path / "rows.jsonl", rows), "--no-probe")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "[bold]b" in done.stdout


def test_a_file_of_vectors_would_train_an_adapter_which_is_measured(tmp_path: Path) -> None:
    rows = [{"anchor_vector": [n, 1.0], "positive_vector": [n, 2.0]} for n in range(40)]
    done = typed(write(tmp_path / "vectors.jsonl", rows), "--json", cwd=tmp_path)
    report = Report(**json.loads(done.stdout))
    assert report.training is not None
    assert (report.training.model, report.training.max_seq_length) == ("adapter", None)
    assert report.training.learning_rate == ADAPTER_LEARNING_RATE
    assert report.estimate is not None, report.estimate_missing
    assert report.estimate.seconds_per_step > 0


def test_an_encoder_from_scratch_is_planned_and_has_no_tokens_to_count_yet(
    inspect: Callable[..., Done], tmp_path: Path
) -> None:
    done = inspect(write(tmp_path / "pairs.jsonl"), "--model", "scratch", "--json")
    report = Report(**json.loads(done.stdout))
    assert report.training is not None
    assert (done.returncode, report.training.model) == (0, "scratch")
    assert (report.training.learning_rate, report.training.max_seq_length) == (SCRATCH_LEARNING_RATE, 256)
    reason = "scratch has no weights before a job has trained it on a file of texts."
    assert report.token_lengths_missing == report.estimate_missing == reason
