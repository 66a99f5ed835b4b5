"""A job's events as they happen: server-sent events over the openai client's own connection.

The client's `Stream` would parse them too, but it hides their names and ids, takes a `done` event whose job
carries an error for a broken stream, and stumbles over a heartbeat. So it only opens the connection here.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai import OpenAI

#: Seconds to wait before each attempt to connect again; after the last the server counts as gone.
RECONNECT_AFTER = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Seconds of silence after which a connection counts as broken. Servers send heartbeats more often.
SILENCE = 60.0
ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass
class Event:
    """One event: its name (message, metrics, done), its id for Last-Event-ID, and its JSON."""

    name: str = "message"
    id: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


def follow(client: OpenAI, job_id: str) -> Iterator[Event]:
    """Every event of a job until it has ended, each once, whatever becomes of the connection.

    Raises openai.APIError when the server stays away.
    """
    seen: str | None = None
    waits = iter(RECONNECT_AFTER)
    while True:
        try:
            for event in _connect(client, job_id, seen):
                if event.name == "done":
                    return
                seen, waits = event.id or seen, iter(RECONNECT_AFTER)
                yield event
            if client.fine_tuning.jobs.retrieve(job_id).status in ENDED:
                return
            pause = next(waits, RECONNECT_AFTER[-1])  # it answers, so it is only the stream that closes early
        except (openai.APIConnectionError, openai.InternalServerError, httpx2.TransportError) as error:
            pause = _next_or_raise(waits, error)
        time.sleep(pause)


def _next_or_raise(waits: Iterator[float], error: Exception) -> float:
    pause = next(waits, None)
    if pause is None:
        raise error
    return pause


def _connect(client: OpenAI, job_id: str, seen: str | None) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": seen} if seen else {})
    stream = client.get(
        f"/fine_tuning/jobs/{job_id}/events/stream",
        cast_to=object,
        options={"headers": headers, "timeout": SILENCE},
        stream=True,
        stream_cls=openai.Stream[object],
    )
    with stream:
        yield from parse(stream.response.iter_bytes())


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Decode `text/event-stream`; comments and blocks without data are no events.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html (LF or CRLF, one JSON object each).
    """
    event, data = Event(), ""
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                event.data = json.loads(data)
                yield event
            event, data = Event(), ""
        elif name == "event":
            event.name = value
        elif name == "id":
            event.id = value
        elif name == "data":
            data += value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines without their ends. Split as bytes: JSON may hold what str.splitlines takes for an end."""
    buffer = b""
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8")
