"""The steady load: clients that order trainings, follow them to their end, and now and then change their mind."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from api_schemas.jobs import ENDED
from tests.chaos.clients import Client, NoAnswerError
from tests.chaos.fleet import Fleet
from tests.chaos.history import Answer, History
from tests.chaos.pace import Pace
from tests.chaos.specs import FILES, SPECS, STEPS, Spec, content

Wish = Literal["succeeded", "cancelled", "paused and resumed", "failed"]

_LOOK_EVERY_SECONDS = 0.5
_PATIENCE_SECONDS = 240.0
#: How background clients are: most want their model, some change their mind.
_WISHES: tuple[Wish, ...] = ("succeeded",) * 8 + ("cancelled", "paused and resumed")


@dataclass(frozen=True)
class Told:
    """What a client was told of its job."""

    at: float  # Unix time, seconds
    status: str
    attempt: int
    model: str | None


@dataclass
class Order:
    """One job that a client wants, from its first request to its end."""

    key: str
    spec: Spec
    wish: Wish
    codes: frozenset[str] = frozenset()  # with which it may fail
    job_id: str | None = None
    told: list[Told] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)  # of events, for a client that follows the stream
    attempts_at_create: int = 0
    error: str | None = None
    trouble: str | None = None  # why its client gave up
    done: threading.Event = field(default_factory=threading.Event)
    accepted: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> str | None:
        """The terminal status that the client was told first."""
        return next((told.status for told in self.told if told.status in ENDED), None)


class Load:
    """All orders of a run. Faults order jobs of their own, and the background keeps some going."""

    def __init__(self, fleet: Fleet, history: History, rng: random.Random, pace: Pace) -> None:
        self._fleet = fleet
        self._pace = pace
        self._history = history
        self._rng = rng
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._files: dict[str, str] = {}
        self._threads: list[threading.Thread] = []
        self._resting = threading.Event()
        self._background: threading.Thread | None = None
        self._specs: Sequence[Spec] = list(SPECS.values())
        self._tolerated: frozenset[str] = frozenset()
        self.orders: list[Order] = []

    def upload_files(self) -> None:
        """Upload what all jobs read, and wait for the verdicts."""
        client = self.client("uploader")
        for name in FILES:
            sent = {"file": (f"{name}.jsonl", content(name)), "purpose": (None, "fine-tune")}
            self._files[name] = client.insist("POST", "/v1/files", files=sent).body["id"]
        for file_id in self._files.values():
            while client.insist("GET", f"/v1/files/{file_id}").body["status"] == "uploaded":
                time.sleep(0.2)
        client.close()

    def order(
        self, spec: Spec | None = None, *, wish: Wish = "succeeded", codes: frozenset[str] = frozenset()
    ) -> Order:
        """Have a client order a job, and return at once."""
        with self._lock:
            spec = spec or self._rng.choice(self._specs)
            number = next(self._numbers)
            order = Order(f"{self._fleet.name}-{number}", spec, wish, codes | self._tolerated)
            self.orders.append(order)
            life = _Life(order, self.client(f"client-{number}"), self._files[spec.file], random.Random(number))
        thread = threading.Thread(target=life.run, name=order.key, daemon=True)
        self._threads.append(thread)
        thread.start()
        return order

    def keep_busy(self, target: int, specs: Sequence[Spec]) -> None:
        """From now on, keep at least so many orders alive, those of faults included; all orders are of these specs."""
        self._specs = specs
        self._resting.clear()

        def work() -> None:
            while not self._resting.wait(0.5):
                if sum(not order.done.is_set() for order in list(self.orders)) < target:
                    self.order(wish=self._rng.choice(_WISHES))

        self._background = threading.Thread(target=work, name="background", daemon=True)
        self._background.start()

    def rest(self) -> None:
        """Order nothing more in the background, until it is to be kept busy again."""
        self._resting.set()
        if self._background is not None:
            self._background.join()

    def tolerate(self, codes: frozenset[str]) -> None:
        """From now on jobs may fail with these codes, those that have not ended included."""
        with self._lock:
            self._tolerated = codes
            for order in self.orders:
                if not order.done.is_set():
                    order.codes |= codes

    def await_all(self, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until every client has its answer, or so long."""
        deadline = time.monotonic() + self._pace.stretch(seconds)
        for order in list(self.orders):
            order.done.wait(max(deadline - time.monotonic(), 0.0))

    def client(self, name: str) -> Client:
        """Another client of the API."""
        return Client(name, self._fleet.urls(), self._fleet.key, self._history, self._pace)

    def file_id(self, name: str) -> str:
        return self._files[name]


class _Life:
    """What one client does."""

    def __init__(self, order: Order, client: Client, file_id: str, rng: random.Random) -> None:
        self._order = order
        self._client = client
        self._file_id = file_id
        self._rng = rng
        self._turn_at = rng.randint(0, STEPS) if order.wish != "succeeded" else None  # when it changes its mind

    def run(self) -> None:
        try:
            if self._create():
                self._follow()
        except NoAnswerError as error:
            self._order.trouble = str(error)
        finally:
            self._client.close()
            self._order.accepted.set()
            self._order.done.set()

    def _create(self) -> bool:
        order = self._order
        answer = self._client.insist(
            "POST", "/v1/fine_tuning/jobs", json=order.spec.request(self._file_id, order.key),
            headers={"Idempotency-Key": order.key},
        )  # fmt: skip
        if not answer.good:
            order.trouble = f"refused: {answer.status} {answer.code}"
            return False
        order.job_id = answer.body["id"]
        order.accepted.set()
        return True

    def _follow(self) -> None:
        if self._rng.random() < 0.3:  # some listen to the stream instead of asking
            listener = threading.Thread(target=self._listen, daemon=True)
            listener.start()
        deadline = time.monotonic() + _PATIENCE_SECONDS * 3
        while time.monotonic() < deadline:
            answer = self._look()
            if self._order.ended:
                self._look()  # also at the other process: what has ended stays so
                return
            if answer.good:
                self._act(answer.body)
            time.sleep(_LOOK_EVERY_SECONDS)
        self._order.trouble = "its job has not ended"

    def _look(self) -> Answer:
        answer = self._client.ask("GET", f"/v1/fine_tuning/jobs/{self._order.job_id}")
        if answer.good:
            job = answer.body
            told = Told(answer.at + answer.seconds, job["status"], job["attempt"], job["fine_tuned_model"])
            self._order.told.append(told)
            self._order.error = job["error"]["code"] if job["error"] else None
        elif answer.status == 404:
            self._order.trouble = f"404 for a job that was accepted ({answer.code})"
        return answer

    def _act(self, job: dict[str, Any]) -> None:
        """Change one's mind when it is time to, and go on with what was paused."""
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        if job["status"] == "paused":
            self._client.insist("POST", f"{path}/resume")
        elif self._turn_at is not None and _step(job) >= self._turn_at and self._order.wish in _TURNS:
            self._turn_at = None
            self._client.insist("POST", f"{path}/{_TURNS[self._order.wish]}")

    def _listen(self) -> None:
        """Follow the stream over reconnects, as `Last-Event-ID` lets a client."""
        seqs = self._order.seqs
        while not self._order.done.is_set():
            for name, seq, _ in self._client.events(
                self._order.job_id or "", after=seqs[-1] if seqs else 0, seconds=10
            ):
                if name == "done":
                    return
                seqs.append(seq)
            time.sleep(_LOOK_EVERY_SECONDS)


_TURNS: dict[Wish, str] = {"cancelled": "cancel", "paused and resumed": "pause"}


def _step(job: dict[str, Any]) -> int:
    return int(job["progress"]["step"]) if job["progress"] else 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
