import json

import httpx2
import pytest

from service.demo import events
from service.demo.failures import DemoError
from service.demo.training import train, upload

METHOD = {"type": "contrastive", "contrastive": {"hyperparameters": {"max_steps": 2}}}

EVALUATION = {
    "search": {
        "trials": [
            {"number": 1, "choices": {"temperature": 0.05}, "metric": 0.5, "low": 0.4, "high": 0.6, "steps": 8,
             "pruned": False},
            {"number": 2, "choices": {"temperature": 0.01}, "metric": None, "low": None, "high": None, "steps": 2,
             "pruned": True},
        ],
        "chosen": 1,
        "metric": "mrr",
        "said": "The choice matters little here.",
    }
}  # fmt: skip


def sse(seq, name, data):
    return f"id: {seq}\nevent: {name}\ndata: {json.dumps(data)}\n\n: beat\n\n"


def message(seq, text):
    return sse(seq, "message", {"level": "info", "message": text})


def metrics(seq, step):
    return sse(seq, "metrics", {"data": {"step": step, "total_steps": 2, "loss": 0.5, "seconds_left": 61.0}})


class Server:
    """Answers with one job; each connection to its stream gets the next of `streams`."""

    def __init__(self, job, streams):
        self.job = {"id": "job-1", "status": "running"}
        self.end = job
        self.streams = list(streams)
        self.created = None
        self.last_event_ids = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            self.created = json.loads(request.content)
        elif request.url.path.endswith("/stream"):
            self.last_event_ids.append(request.headers.get("last-event-id"))
            stream = self.streams.pop(0)
            if not self.streams:
                self.job |= self.end
            return httpx2.Response(200, text=stream, headers={"content-type": "text/event-stream"})
        elif request.url.path.endswith("/evaluation"):
            return httpx2.Response(200, json=EVALUATION)
        return httpx2.Response(200, json=self.job)


def test_a_job_is_followed_to_its_model(session_with):
    server = Server(
        {"status": "succeeded", "fine_tuned_model": "ft:m"},
        [message(1, "Off we go.") + metrics(2, 1) + metrics(3, 2) + sse(4, "done", {"error": None})],
    )
    session = session_with(server)
    assert train(session, "file-1", METHOD) == "ft:m"
    assert server.created["method"] == METHOD
    assert server.created["training_file"] == "file-1"
    assert "Off we go." in session.console.file.getvalue()
    assert "steps 2/2 (100 %)  loss 0.500 · 1:01 left" in session.console.file.getvalue()
    assert session.job_id is None


def test_a_broken_stream_goes_on_after_the_last_event(session_with, monkeypatch):
    waits = []
    monkeypatch.setattr(events.time, "sleep", waits.append)
    end = {"status": "succeeded", "fine_tuned_model": "ft:m"}
    server = Server(end, [message(1, "One."), "", message(2, "Two.") + sse(3, "done", {})])
    session = session_with(server)
    train(session, "file-1", METHOD)
    assert server.last_event_ids == [None, "1", "1"]
    assert waits == [0.5, 1.0]
    assert session.console.file.getvalue().count("One.") == 1


def test_a_search_tells_its_trials_by_temperature(session_with):
    server = Server({"status": "succeeded", "fine_tuned_model": "ft:m"}, [sse(1, "done", {"error": None})])
    session = session_with(server)
    train(session, "file-1", {"contrastive": {"hyperparameters": {"trials": 2}}})
    told = " ".join(session.console.file.getvalue().split())
    assert "2 0.01 failed 2 given up 1 0.05 0.500 0.400 … 0.600 8 chosen" in told
    assert "The choice matters little here." in told


def test_a_job_that_ended_without_saying_so_has_ended(session_with):
    server = Server({"status": "succeeded", "fine_tuned_model": "ft:m"}, [message(1, "One.")])
    assert train(session_with(server), "file-1", METHOD) == "ft:m"


def test_a_failed_job_is_told_with_its_reason(session_with):
    error = {"code": "out_of_memory", "message": "The batch does not fit.", "param": None}
    server = Server({"status": "failed", "error": error}, [sse(1, "done", {"error": error})])
    with pytest.raises(DemoError, match="The batch does not fit") as caught:
        train(session_with(server), "file-1", METHOD)
    assert "job-1" in caught.value.remedy


def test_a_cancelled_job_is_told(session_with):
    server = Server({"status": "cancelled", "error": None}, [sse(1, "done", {})])
    with pytest.raises(DemoError, match="cancelled"):
        train(session_with(server), "file-1", METHOD)


def test_a_refused_file_is_told_with_its_reason(session_with, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    file = {"id": "file-1", "bytes": 3, "status": "error", "status_details": "Row 1 lacks 'anchor'."}
    with pytest.raises(DemoError, match="Row 1 lacks 'anchor'"):
        upload(session_with(lambda request: httpx2.Response(200, json=file)), path)
