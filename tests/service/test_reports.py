"""The report on an uploaded file, and the jobs that it keeps from the queue."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from api_schemas.reports import Report
from tests.installation import PAIRS, Installation
from tests.storage.rows import OTHER_TEAM, add_file, add_team

RARE = [{"text": f"text {n}", "label": "spam" if n < 4 else "ham"} for n in range(1000)]


def report_of(installation: Installation, file_id: str) -> Any:
    return installation.request("GET", f"/v1/files/{file_id}/report")


def test_a_validated_file_has_a_report(shared: Installation) -> None:
    answer = report_of(shared, shared.upload([*PAIRS, PAIRS[0]]))
    report = Report(**answer.json())
    assert answer.status_code == 200
    assert report.verdict.usable
    assert (report.rows, report.duplicates.rows) == (len(PAIRS) + 1, 1)
    assert [warning.code for warning in report.warnings] == ["duplicate_rows"]
    assert report.token_lengths is not None
    assert report.training is not None


def test_a_refused_file_has_one_too(shared: Installation) -> None:
    report = Report(**report_of(shared, shared.upload([PAIRS[0], {"anchor": "a"}])).json())
    assert not report.verdict.usable
    assert [(kind.code, kind.count) for kind in report.refused] == [("row_missing_field", 1)]


def test_while_it_is_validated_there_is_none_yet(shared: Installation) -> None:
    file_id = shared.upload(PAIRS, validated=False)
    answer = report_of(shared, file_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_not_validated")
    assert answer.headers["retry-after"] == "1"
    shared.validate(file_id)
    assert report_of(shared, file_id).status_code == 200


def test_a_file_of_another_team_or_without_report_is_not_found(shared: Installation) -> None:
    database = shared.database
    add_team(database)
    for file_id in (add_file(database, team=OTHER_TEAM), add_file(database), "file-unknown"):
        answer = report_of(shared, file_id)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_validating_on_the_training_file_is_refused(shared: Installation) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        shared.create_job(shared.upload(PAIRS), validation_file=shared.upload(PAIRS))
    assert (refusal.value.code, refusal.value.param) == ("evaluation_in_training", "validation_file")


def test_batches_of_one_class_are_refused_unless_larger_ones_are_asked_for(shared: Installation) -> None:
    file_id = shared.upload(RARE)
    with pytest.raises(openai.BadRequestError) as refusal:
        shared.create_job(file_id, hyperparameters={"batch_size": "auto"})
    assert (refusal.value.code, refusal.value.param) == ("too_few_classes", "training_file")
    assert "Only 1 of 16 batches could hold a second label" in refusal.value.message
    assert shared.create_job(file_id, hyperparameters={"batch_size": 512}).status == "queued"


def test_a_job_that_waited_for_such_files_fails_with_the_reason(shared: Installation) -> None:
    file_id = shared.upload(RARE, validated=False)
    job = shared.create_job(file_id)
    shared.validate(file_id)
    job = shared.openai.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error.code) == ("failed", "too_few_classes")
