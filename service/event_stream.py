"""Server-Sent Events as a body of bytes: events with numbers, and signs of life between them."""

from typing import Any

from fastapi.sse import format_sse_event

#: Events that are read, and sent, at once. A reader that doesn't read keeps no more than these in memory.
EVENTS_AT_ONCE = 100

MEDIA_TYPE = "text/event-stream"
#: No proxy may keep events to itself, or keep them for others.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

#: For `responses=` of a route.
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, each with its number as `id`.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


def event(name: str, data: str, number: int) -> bytes:
    """One event; `data` is JSON."""
    return format_sse_event(event=name, data_str=data, id=str(number))


def comment(text: str) -> bytes:
    """A line that readers skip.

    Without the blank line that usually follows: that ends an event, and where a number has been sent before, OpenAI's
    Stream takes it for an event without data, which isn't JSON.
    """
    return f": {text}\n".encode()
