"""What requests ask of PostgreSQL, seen in the process of the API that answers them."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event


@contextlib.contextmanager
def statements_of_requests() -> Iterator[list[str]]:
    """The statements sent to PostgreSQL, but for those of threads that work for no request."""
    statements: list[str] = []

    def note(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread().name not in ("catalogue", "dispatcher"):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)
