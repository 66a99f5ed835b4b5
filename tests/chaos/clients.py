"""A careful client of the API: it asks again under the same key, at another process, and writes all of it down."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2

from tests.chaos.history import Answer, History
from tests.chaos.pace import Pace

_TIMEOUT_SECONDS = 12.0
_RETRIED = (409, 429, 503)


class NoAnswerError(Exception):
    """Nobody gave a definite answer in time."""


class Client:
    """One client. `urls` are the API processes, which it takes in turn."""

    def __init__(self, name: str, urls: Sequence[str], key: str, history: History, pace: Pace) -> None:
        self.name = name
        self._urls = itertools.cycle(urls)
        self._key = key
        self._history = history
        self._pace = pace
        self._http = httpx2.Client(trust_env=False)

    def ask(self, method: str, path: str, *, url: str | None = None, **arguments: Any) -> Answer:
        """One request, to the next process. What came of it is in the history."""
        url = url or next(self._urls)
        headers = {"Authorization": f"Bearer {self._key}", **arguments.pop("headers", {})}
        began, at = time.monotonic(), time.time()
        timeout = self._pace.stretch(_TIMEOUT_SECONDS)
        try:
            response = self._http.request(method, url + path, headers=headers, timeout=timeout, **arguments)
        except httpx2.HTTPError as error:
            status, code, retry_after, body = None, type(error).__name__, None, None
        else:
            status, body = response.status_code, _json(response)
            code, retry_after = _code(body), response.headers.get("Retry-After")
        seconds = time.monotonic() - began
        return self._history.add(
            Answer(
                at, seconds, self.name, url, method, path, status, code, retry_after, body, self._pace.slowness
            )
        )  # fmt: skip

    def insist(self, method: str, path: str, *, seconds: float = 150.0, **arguments: Any) -> Answer:
        """Ask until somebody gives a definite answer. Raises NoAnswerError."""
        deadline = time.monotonic() + self._pace.stretch(seconds)
        for pause in _pauses():
            answer = self.ask(method, path, **arguments)
            again = answer.status in _RETRIED and (answer.retry_after is not None or answer.status == 503)
            if answer.known and not again:
                return answer
            if time.monotonic() > deadline:
                raise NoAnswerError(f"{method} {path}: {answer.status} {answer.code} for {seconds:.0f} s")
            time.sleep(pause)
        raise AssertionError

    def events(self, job_id: str, *, after: int, seconds: float) -> Iterator[tuple[str, int, Any]]:
        """(event, id, data) of a job's stream at the next process, until it ends or breaks."""
        url = next(self._urls)
        headers = {"Authorization": f"Bearer {self._key}", "Last-Event-ID": str(after)}
        path = f"{url}/v1/fine_tuning/jobs/{job_id}/events/stream"
        name, number = "", after
        try:
            with self._http.stream("GET", path, headers=headers, timeout=seconds) as stream:
                if stream.status_code != 200:
                    return
                for line in stream.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "id":
                        number = int(value)
                    elif field == "data":
                        data = json.loads(value)
                    elif not line and name:
                        yield name, number, data
                        name = ""
        except httpx2.HTTPError:
            return

    def close(self) -> None:
        self._http.close()


def _pauses() -> Iterator[float]:
    yield from (0.1, 0.2, 0.4)
    while True:
        yield 0.7


def _code(body: Any) -> str | None:
    """The code of an error's body."""
    return body["error"]["code"] if isinstance(body, dict) and "title" in body else None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
