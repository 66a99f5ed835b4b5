"""Files that can't be trained on: each is refused with its row, its field, a code and a remedy."""

import gzip
import json
from typing import Any

import openai
import pytest

from tests.installation import HELD_OUT, PAIRS, Installation


def _lines(*rows: Any) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def _label(text: str, label: str) -> dict[str, str]:
    return {"text": text, "label": label}


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LONG = {"anchor": "x" * 10_000_000, "positive": "y"}

# content, then what is told of its first error: row, field, code, words of the remedy
BAD_FILES = [
    pytest.param(b"", None, None, "empty_file", "Expected are rows such as", id="empty"),
    pytest.param(b"\n \r\n\n", None, None, "empty_file", "Expected are rows such as", id="blank lines only"),
    pytest.param(
        _lines(PAIRS[0], '{"anchor": "Zürich", "positive": "x"}'.encode("latin-1")),
        2, None, "invalid_utf8", "Save the file as UTF-8", id="not UTF-8",
    ),
    pytest.param(
        _lines(*PAIRS[:2]).decode().encode("utf-16"), None, None, "invalid_utf8", "Save it as UTF-8", id="UTF-16"
    ),
    pytest.param(
        _lines(*PAIRS[:6], b'{"anchor": "a", "positive": "b"', *PAIRS[7:]),
        7, None, "row_invalid_json", "Each line must be one whole JSON object", id="broken JSON in row 7",
    ),
    pytest.param(
        json.dumps(PAIRS, indent=1).encode(),
        None, None, "unsupported_file", "one object a line", id="one JSON array",
    ),
    pytest.param(
        _lines(*PAIRS[:3], {"anchor": "a"}), 4, "positive", "row_missing_field", "Add it", id="a field is missing"
    ),
    pytest.param(
        _lines({"anchor": "a", "positve": "b"}), 1, "positive", "row_missing_field", "Rename 'positve'", id="misspelt"
    ),
    pytest.param(
        _lines(*PAIRS[:2], LONG, *PAIRS[2:]), 3, None, "row_too_long", "Shorten its texts", id="a line of 10 MB"
    ),
    pytest.param(
        _lines(PAIRS[0], {"anchor": "", "positive": "b"}),
        2, "anchor", "row_empty_text", "Fill it or remove the row", id="an empty text",
    ),
    pytest.param(
        _lines(PAIRS[0], {"anchor": ["a", "b"], "positive": "c"}),
        2, "anchor", "row_invalid_type", "Write one row for each", id="a list of anchors",
    ),
    pytest.param(_lines(PAIRS[0]), None, None, "too_few_pairs", "Add rows", id="one pair only"),
    pytest.param(_lines(*[PAIRS[0]] * 5), None, None, "too_few_pairs", "Add rows", id="one pair five times"),
    pytest.param(
        _lines(*[_label(f"text {n}", f"label {n}") for n in range(5)]),
        None, "label", "no_positives", "Give rows that are alike one label", id="labels all different",
    ),
    pytest.param(
        _lines(*[_label(f"text {n}", "same") for n in range(5)]),
        None, "label", "single_label", "Add rows of another label", id="labels all the same",
    ),
    pytest.param(
        _lines(*PAIRS[:3], _label("a", "b")),
        4, None, "row_mixed_format", "files of their own", id="pairs and labels in one file",
    ),
    pytest.param(
        b"anchor,positive\na,b\nc,d,e\n", 3, None, "row_ragged", "Quote the cells", id="a table with a loose comma"
    ),
    pytest.param(
        gzip.compress(_lines(*PAIRS))[:-9], None, None, "file_damaged", "Compress it again", id="gzip that ends early"
    ),
    pytest.param(b"PAR1 of a file cut off", None, None, "file_damaged", "Write it again", id="Parquet that ends early"),
    pytest.param(_lines(CHAT, CHAT), 1, None, "row_missing_field", "this service trains encoders", id="chat rows"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "row", "field", "code", "remedy"), BAD_FILES)
def test_a_bad_file_says_where_it_is_bad_and_no_job_takes_it(
    shared: Installation, content: bytes, row: int | None, field: str | None, code: str, remedy: str
) -> None:
    file_id = shared.upload(content)
    file = shared.openai.files.retrieve(file_id)
    assert file.status == "error"
    assert file.error_count >= 1
    first = file.errors[0]
    assert (first["row"], first["field"], first["code"]) == (row, field, code)
    assert remedy in first["message"]
    assert remedy in file.status_details
    assert row is None or f"Row {row}:" in file.status_details
    with pytest.raises(openai.BadRequestError) as refusal:
        shared.create_job(file_id)
    assert (refusal.value.code, refusal.value.param) == ("file_invalid", "training_file")
    assert file.status_details in refusal.value.message


def test_a_bad_validation_file_is_refused_under_its_own_name(shared: Installation, pairs_file: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        shared.create_job(pairs_file, validation_file=shared.upload(b""))
    assert (refusal.value.code, refusal.value.param) == ("file_invalid", "validation_file")


def test_errors_are_counted_to_the_last_and_listed_up_to_a_hundred(shared: Installation) -> None:
    file = shared.openai.files.retrieve(shared.upload(_lines(*PAIRS, *[{"anchor": "a"}] * 250)))
    assert (file.error_count, len(file.errors), file.rows) == (250, 100, len(PAIRS))
    assert [error["row"] for error in file.errors] == list(range(21, 121))


def test_a_job_on_a_file_not_yet_validated_waits_and_is_then_queued(shared: Installation) -> None:
    file_id = shared.upload(PAIRS, validated=False)
    job = shared.create_job(file_id)
    assert (job.status, job.attempt) == ("validating_files", 0)
    shared.validate(file_id)
    job = shared.prepare(job)
    assert (job.status, job.attempt, job.error) == ("queued", 1, None)


def test_a_job_on_a_file_that_proves_bad_fails_with_the_reason(shared: Installation) -> None:
    file_id = shared.upload(_lines(PAIRS[0], {"anchor": "a"}), validated=False)
    job = shared.create_job(file_id)
    shared.validate(file_id)
    job = shared.openai.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error.code) == ("failed", "file_invalid")
    assert "Row 2: has no 'positive'. Add it." in job.error.message
    assert job.error.message in [event.message for event in shared.openai.fine_tuning.jobs.list_events(job.id)]


def test_a_job_waits_for_both_of_its_files(shared: Installation) -> None:
    training, validation = (shared.upload(rows, validated=False) for rows in (PAIRS, HELD_OUT))
    job = shared.create_job(training, validation_file=validation)
    states = []
    for file_id in (validation, training):
        shared.validate(file_id)
        states.append(shared.prepare(job).status)
    assert states == ["validating_files", "queued"]
