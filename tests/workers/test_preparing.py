"""Between a job's creation and the queue of those who train."""

from __future__ import annotations

from typing import Any

import pytest

from tests.installation import HELD_OUT, PAIRS, Installation
from tests.workers.following import messages_of

LABELLED = [{"text": f"the word {word} and {number}", "label": word} for word in "abcde" for number in range(6)]
RENAMED = [{"title": row["anchor"], "body": row["positive"]} for row in PAIRS]
PLAIN = [{"text": f"{row['anchor']}, and then {row['positive']}"} for row in PAIRS]
COLUMNS = {"columns": {"anchor": "title", "positive": "body"}}


def method(*, data: dict[str, Any] | None = None, loss: dict[str, Any] | None = None) -> dict[str, Any]:
    contrastive = {"data": data or {}, "loss": loss or {}, "hyperparameters": {"max_steps": 2, "batch_size": 8}}
    return {"type": "contrastive", "contrastive": contrastive}


def created(shared: Installation, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    job = shared.openai.fine_tuning.jobs.create(
        model="tiny/bert", training_file=shared.upload(rows), method=method(**arguments)
    )
    return shared.prepare(job)


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        pytest.param(RENAMED, COLUMNS, id="columns of other names"),
        pytest.param(PLAIN, {"view": "span"}, id="plain texts, spans of them"),
        pytest.param(PLAIN, {"view": "deletion"}, id="plain texts, words left out"),
        pytest.param(LABELLED, {"format": "texts"}, id="labels left aside"),
        pytest.param([{**row, "negative": f"not {row['anchor']}"} for row in PAIRS], {}, id="hard negatives"),
        pytest.param(
            [{"views": [row["anchor"], row["positive"], "x" + row["anchor"]]} for row in PAIRS], {}, id="views"
        ),
    ],
)
def test_every_form_of_text_trains(shared: Installation, rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    job = shared.train(created(shared, rows, data=data))
    assert job.status == "succeeded", job.error


@pytest.mark.parametrize(
    ("rows", "data", "loss", "code", "words"),
    [
        pytest.param(
            RENAMED, {"columns": {"anchor": "titel", "positive": "body"}}, {}, "file_invalid", "titel", id="typo"
        ),
        pytest.param(PAIRS, {"columns": {"query": "anchor"}}, {}, "invalid_value", "columns must name", id="no role"),
        pytest.param(LABELLED, {}, {"symmetric": False}, "invalid_value", "Leave it out", id="a direction of labels"),
    ],
)
def test_what_cannot_be_trained_fails_before_it_is_queued(
    shared: Installation, rows: list[dict[str, Any]], data: dict[str, Any], loss: dict[str, Any], code: str, words: str
) -> None:
    job = created(shared, rows, data=data, loss=loss)
    assert (job.status, job.attempt, job.error.code) == ("failed", 0, code)
    assert words in job.error.message


def test_a_validation_file_made_of_training_rows_is_refused(shared: Installation) -> None:
    job = shared.create_job(shared.upload(PAIRS), validation_file=shared.upload(PAIRS[:8]))
    assert (job.status, job.error.code) == ("failed", "evaluation_in_training")
    assert "8 of the validation file's 8 rows" in job.error.message


def test_some_training_rows_in_the_validation_file_are_told(shared: Installation) -> None:
    job = shared.create_job(shared.upload(PAIRS), validation_file=shared.upload([*HELD_OUT, PAIRS[0]]))
    assert job.status == "queued"
    assert any("1 of the validation file's 7 rows stand in" in message for message in messages_of(shared, job.id))


def test_a_cancelled_job_is_not_prepared(shared: Installation) -> None:
    job = shared.create_job(shared.upload(PAIRS), prepared=False)
    shared.openai.fine_tuning.jobs.cancel(job.id)
    assert shared.prepare(job).status == "cancelled"


def test_training_reads_what_was_prepared(shared: Installation) -> None:
    kept = shared.settings.derived_dir
    kept.mkdir(exist_ok=True)
    before = set(kept.iterdir())
    job = shared.create_job(shared.upload([*PAIRS, {"anchor": "one more", "positive": "and again"}]))
    made = set(kept.iterdir()) - before
    assert len(made) == 1

    assert shared.train(job).status == "succeeded"
    assert set(kept.iterdir()) - before == made


def test_preparing_twice_changes_nothing(shared: Installation) -> None:
    job = shared.create_job(shared.upload(PAIRS))
    again = shared.prepare(job)
    assert (again.status, again.attempt) == ("queued", 1)
