"""Following a training: its stream of events, and what its steps measured."""

from typing import Any

import pytest

from tests.installation import TINY, Installation

JOBS = "/v1/fine_tuning/jobs"
STEPS = 5


@pytest.fixture(scope="module")
def followed(shared: Installation, pairs_file: str) -> tuple[Any, list[tuple[str, Any]]]:
    """A job that a real worker trained, and the stream of its events as it came."""
    job = shared.create_job(pairs_file, max_steps=STEPS)
    with shared.worker("gpu"):
        stream = shared.events_until_done(job.id)
    return shared.openai.fine_tuning.jobs.retrieve(job.id), stream


def test_a_stream_tells_everything_once_in_order_and_ends_with_the_job(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, stream = followed
    *events, (last_name, last) = stream
    assert last_name == "done"
    assert last == shared.request("GET", f"{JOBS}/{job.id}").json()
    assert (last["status"], last["error"]) == ("succeeded", None)
    listed = shared.request("GET", f"{JOBS}/{job.id}/events?limit=1000").json()["data"]
    assert [event for _, event in events] == listed[::-1]
    assert [event["seq"] for _, event in events] == list(range(1, len(events) + 1))
    assert all(name == event["type"] for name, event in events)
    assert "metrics" in [name for name, _ in events]


def test_a_stream_goes_on_behind_the_last_event_seen(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, stream = followed
    for seen in range(len(stream)):
        assert shared.events_until_done(job.id, after=seen) == stream[seen:]


def test_a_stream_past_the_end_only_says_done(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, stream = followed
    assert shared.events_until_done(job.id, after=999_999_999) == stream[-1:]


def test_a_stream_numbers_its_events_for_whoever_reconnects(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, stream = followed
    answer = shared.request("GET", f"{JOBS}/{job.id}/events/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    numbers = [line.removeprefix("id: ") for line in answer.text.splitlines() if line.startswith("id: ")]
    assert numbers == [str(event["seq"]) for _, event in stream[:-1]] + [str(len(stream) - 1)]


@pytest.mark.parametrize("last_event_id", ["-1", "x", "1.5", "9" * 10, "1 OR 1=1"])
def test_a_last_event_id_that_is_no_number_of_an_event_is_refused(
    shared: Installation, pairs_file: str, last_event_id: str
) -> None:
    job = shared.create_job(pairs_file)
    shared.openai.fine_tuning.jobs.cancel(job.id)
    answer = shared.request("GET", f"{JOBS}/{job.id}/events/stream", headers={"Last-Event-ID": last_event_id})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "last-event-id")


def test_the_stream_of_a_job_that_is_not_there_is_404_and_no_stream(shared: Installation) -> None:
    answer = shared.request("GET", f"{JOBS}/ftjob-0/events/stream")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/json"


def test_a_failed_job_ends_its_stream_with_the_reason(shared: Installation) -> None:
    file_id = shared.upload(b"[]\n", validated=False)
    job = shared.openai.fine_tuning.jobs.create(model=TINY, training_file=file_id)
    with shared.worker("cpu"):
        stream = shared.events_until_done(job.id)
    assert [event["level"] for _, event in stream[:-1]][-1] == "error"
    name, last = stream[-1]
    assert (name, last["status"], last["error"]["code"]) == ("done", "failed", "file_invalid")


def test_metrics_have_every_step_and_rates_over_all(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, _ = followed
    metrics = shared.request("GET", f"{JOBS}/{job.id}/metrics").json()
    steps = metrics["data"]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert step["loss"] > 0
        assert step["pairs_per_second"] > 0
        assert step["tokens_per_second"] > 0
        assert step["grad_norm"] > 0
        assert step["learning_rate"] >= 0
        assert -1 <= step["negative_cosine"] <= 1
        assert -1 <= step["positive_cosine"] <= 1
    seconds = sum(step["seconds"] for step in steps)
    rows = sum(step["pairs_per_second"] * step["seconds"] for step in steps)
    assert metrics["summary"]["steps"] == STEPS
    assert metrics["summary"]["pairs_per_second"] == pytest.approx(rows / seconds)
    rates = [step["tokens_per_second"] for step in steps]
    assert min(rates) <= metrics["summary"]["tokens_per_second"] <= max(rates)


def test_fewer_points_than_steps_can_be_asked_for(
    shared: Installation, followed: tuple[Any, list[tuple[str, Any]]]
) -> None:
    job, _ = followed
    metrics = shared.request("GET", f"{JOBS}/{job.id}/metrics?max_points=4").json()
    assert metrics["summary"]["steps"] == STEPS
    assert [metrics["data"][0]["step"], metrics["data"][-1]["step"]] == [1, STEPS]
    assert len(metrics["data"]) <= 4
    refused = shared.request("GET", f"{JOBS}/{job.id}/metrics?max_points=3")
    assert refused.json()["error"]["code"] == "out_of_range"


def test_a_job_that_has_not_begun_has_no_metrics(shared: Installation, pairs_file: str) -> None:
    job = shared.create_job(pairs_file)
    shared.openai.fine_tuning.jobs.cancel(job.id)
    metrics = shared.request("GET", f"{JOBS}/{job.id}/metrics").json()
    assert (metrics["data"], metrics["summary"]["steps"]) == ([], 0)
    assert metrics["summary"]["pairs_per_second"] is None
