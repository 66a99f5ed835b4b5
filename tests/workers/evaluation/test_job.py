"""Whole jobs, as a user meets their evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.installation import Installation
from tests.workers.following import messages_of

MANY = [{"anchor": f"word {number}", "positive": f"said {number} again"} for number in range(120)]
LABELLED = [{"text": f"the word {word} and {number}", "label": word} for word in "abcde" for number in range(24)]


def evaluation_of(shared: Installation, job: Any) -> dict[str, Any]:
    answer = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def carved(shared: Installation) -> Any:
    """A job of 120 pairs, of which the service holds some out."""
    job = shared.train(shared.create_job(shared.upload(MANY), seed=3))
    assert job.status == "succeeded", job.error
    return job


def test_a_tenth_of_the_rows_is_held_out_and_asked_about(shared: Installation, carved: Any) -> None:
    found = evaluation_of(shared, carved)

    assert carved.method.contrastive["data"]["eval_split"] == 0.1
    assert found["split"]["source"] == "training_file"
    assert (found["split"]["rows"], found["split"]["queries"]) == (12, 12)
    assert found["split"]["documents"] == 120
    assert [metric["name"] for metric in found["metrics"]][0] == found["metric"] == "mrr"
    assert found["summary"] in messages_of(shared, carved.id)
    for metric in found["metrics"]:
        assert metric["low"] <= metric["difference"] <= metric["high"]
