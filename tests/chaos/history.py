"""What clients asked and what they were told, in the order it happened. Answers that never came are `unknown`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: An answer may take so long, times how slow the machine is. The promise is 2 s for a server that is away; a connection
#: of the pool may have to be found dead first.
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """One request to one API process. `status` is None when nobody knows what became of it."""

    at: float  # Unix time of the request, seconds
    seconds: float
    client: str
    url: str
    method: str
    path: str
    status: int | None
    code: str | None = None  # of the error
    retry_after: str | None = None
    body: Any = None
    slowness: float = 1.0  # of the machine, at the time

    @property
    def known(self) -> bool:
        return self.status is not None

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    def misdeed(self) -> str | None:
        """What is wrong with this answer by itself, whatever the system was going through."""
        late = self.seconds > ANSWER_SECONDS * self.slowness
        if self.status is None:
            return f"no answer within {self.seconds:.1f} s" if late else None
        if late:
            return f"answered {self.status} after {self.seconds:.1f} s"
        if self.status >= 500 and self.status != 503:
            return f"answered {self.status} ({self.code})"
        if self.status == 503 and self.retry_after is None:
            return "answered 503 without Retry-After"
        return None


class History:
    """Everything that clients heard. Threads share it; it is also written to a file, line by line."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._file = path.open("a", encoding="utf-8")

    def add(self, answer: Answer) -> Answer:
        with self._lock:
            self._answers.append(answer)
            self._file.write(json.dumps(asdict(answer), default=str) + "\n")
        return answer

    def note(self, what: str, **more: Any) -> None:
        """Write down something that isn't an answer, such as a fault."""
        with self._lock:
            self._file.write(json.dumps({"at": time.time(), "note": what, **more}, default=str) + "\n")
            self._file.flush()

    def answers(self, wanted: Callable[[Answer], bool] = lambda _: True) -> list[Answer]:
        with self._lock:
            return [answer for answer in self._answers if wanted(answer)]

    def close(self) -> None:
        self._file.close()
