"""What the API says of the queue: priorities, places, and how many jobs a team may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from service.settings import ServiceSettings
from tests.installation import PAIRS, TINY, Installation, running_installation

JOBS = "/v1/fine_tuning/jobs"


def test_a_queued_job_tells_its_priority_and_its_place_among_the_teams_own(installation: Installation) -> None:
    file_id = installation.upload(PAIRS)
    second = installation.as_second_team()
    second.create_job(second.upload(PAIRS))
    normal = installation.create_job(file_id)
    assert (normal.priority, normal.queue_position) == ("normal", 1)

    high = installation.create_job(file_id, extra_body={"priority": "high"})

    assert (high.priority, high.queue_position) == ("high", 1)
    listed = installation.request("GET", JOBS).json()["data"]
    assert [(job["id"], job["queue_position"]) for job in listed] == [(high.id, 1), (normal.id, 2)]
    assert installation.request("POST", f"{JOBS}/{high.id}/pause").json()["queue_position"] is None
    assert installation.request("GET", f"{JOBS}/{normal.id}").json()["queue_position"] == 1
    assert installation.request("POST", f"{JOBS}/{high.id}/resume").json()["queue_position"] == 1


def test_a_priority_that_there_is_not_is_refused(shared: Installation, pairs_file: str) -> None:
    asked = {"model": TINY, "training_file": pairs_file, "priority": "urgent"}
    answer = shared.request("POST", JOBS, json=asked)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "priority")
    assert "'high'" in error["message"]


@pytest.fixture
def narrow(settings: ServiceSettings) -> Iterator[Installation]:
    """An installation in which a team may have five jobs."""
    with running_installation(settings.model_copy(update={"max_jobs_per_team": 5})) as running:
        yield running


def test_jobs_asked_for_at_once_never_exceed_what_a_team_may_have(narrow: Installation) -> None:
    second = narrow.as_second_team()
    theirs = second.upload(PAIRS)
    asked = {"model": TINY, "training_file": narrow.upload(PAIRS)}

    def ask(_: int) -> httpx2.Response:
        return narrow.request("POST", JOBS, json=asked)

    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(ask, range(20)))

    assert Counter(answer.status_code for answer in answers) == {200: 5, 429: 15}
    [refused, *_] = [answer for answer in answers if answer.status_code == 429]
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
    assert "has 5 jobs that haven't ended, and may have 5" in error["message"]
    assert int(refused.headers["Retry-After"]) > 0
    assert second.request("POST", JOBS, json={"model": TINY, "training_file": theirs}).status_code == 200


def test_room_for_a_job_is_there_again_once_one_has_ended_and_not_while_it_is_paused(narrow: Installation) -> None:
    asked = {"model": TINY, "training_file": narrow.upload(PAIRS)}
    made = [narrow.request("POST", JOBS, json=asked).json()["id"] for _ in range(5)]

    narrow.request("POST", f"{JOBS}/{made[0]}/pause")
    assert narrow.request("POST", JOBS, json=asked).status_code == 429

    narrow.request("POST", f"{JOBS}/{made[0]}/cancel")
    assert narrow.request("POST", JOBS, json=asked).status_code == 200
    assert narrow.request("POST", JOBS, json=asked).status_code == 429
