import httpx2
import pytest

from service.demo.session import cancelled_if_interrupted

JOBS = "/v1/fine_tuning/jobs"


class Server:
    """Lists two jobs and remembers what was asked."""

    def __init__(self, status=200):
        self.status = status
        self.asked = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append((request.method, request.url.path))
        jobs = [{"id": "job-2", "training_file": "other"}, {"id": "job-1", "training_file": "file-1"}]
        return httpx2.Response(self.status, json={"data": jobs, "has_more": False})


def interrupt(session):
    with pytest.raises(KeyboardInterrupt), cancelled_if_interrupted(session):
        raise KeyboardInterrupt


def test_an_interrupted_job_is_cancelled(session_with):
    session = session_with(server := Server())
    session.file_id, session.job_id = "file-1", "job-1"
    interrupt(session)
    assert server.asked == [("POST", f"{JOBS}/job-1/cancel")]


def test_a_job_whose_id_never_came_is_found_by_its_file(session_with):
    session = session_with(server := Server())
    session.file_id = "file-1"
    interrupt(session)
    assert server.asked == [("GET", JOBS), ("POST", f"{JOBS}/job-1/cancel")]


def test_without_a_job_nothing_is_asked(session_with):
    session = session_with(server := Server())
    interrupt(session)
    assert server.asked == []


def test_a_refused_cancel_does_not_hide_the_interruption(session_with):
    session = session_with(server := Server(status=409))
    session.file_id, session.job_id = "file-1", "job-1"
    interrupt(session)
    assert len(server.asked) == 1
