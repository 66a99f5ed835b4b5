"""The verdict on a run, from outside: the API's answers, the files, the process table, and what clients were told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from api_schemas.jobs import ENDED
from tests.chaos.artifacts import leftovers, sha256, torn_models
from tests.chaos.clients import Client
from tests.chaos.findings import Figure, Finding
from tests.chaos.fleet import Fleet
from tests.chaos.history import History
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load, Order
from tests.chaos.watch import Watch
from workers.training.checkpoints import ARITHMETIC

#: What a job says that goes on after an upgrade which changed how steps are computed.
DIFFERENT_ARITHMETIC = f"arithmetic {ARITHMETIC - 1} before, {ARITHMETIC} now"
#: From which status to which a client may see its job go; looks may have missed what was in between.
_LATER = {
    "validating_files": {"queued", "running", "paused"} | ENDED,
    "queued": {"running", "paused"} | ENDED,
    "running": {"queued", "paused"} | ENDED,
    "paused": {"validating_files", "queued", "running"} | ENDED,
}


class Judge:
    """Looks at a fleet at rest, all of whose jobs should have ended."""

    def __init__(self, fleet: Fleet, load: Load, history: History, watch: Watch, references: Mapping[str, str]) -> None:
        self._fleet = fleet
        self._load = load
        self._history = history
        self._watch = watch
        self._references = references
        self._ledger = Ledger(fleet.postgres)

    def findings(self) -> list[Finding]:
        """Everything that should not have been."""
        client = self._load.client("judge")
        models = {row["job_id"]: row for row in self._ledger.models()}
        found = [finding for order in self._load.orders for finding in self._on_order(order, client, models)]
        client.close()
        return [*found, *self._on_answers(), *self._on_processes(), *self._on_rows(), *self._on_artifacts()]

    def _on_order(self, order: Order, client: Client, models: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
        listed = client.insist("GET", f"/v1/fine_tuning/jobs?metadata[client_key]={order.key}").body["data"]
        if len(listed) > 1:
            yield Finding(Figure.DOUBLED, order.key, f"{[job['id'] for job in listed]}", len(listed) - 1)
        if order.job_id is None:
            if order.trouble and order.trouble.startswith("refused"):
                yield Finding(Figure.MISREPORTED, order.key, order.trouble)
            return
        answer = client.insist("GET", f"/v1/fine_tuning/jobs/{order.job_id}")
        if not answer.good or order.job_id not in {job["id"] for job in listed}:
            yield Finding(Figure.LOST, order.job_id, f"accepted, and now {answer.status} {answer.code}")
            return
        yield from self._on_job(order, answer.body, models.get(order.job_id), client)

    def _on_job(
        self, order: Order, job: dict[str, Any], model: dict[str, Any] | None, client: Client
    ) -> Iterator[Finding]:
        if job["status"] not in ENDED:
            if order.job_id not in self._watch.hung:
                yield Finding(Figure.LOST, job["id"], f"still {job['status']} when all was quiet ({order.trouble})")
            return
        yield from on_what_was_told(order, job)
        yield from on_end(order, job)
        yield from self._on_events(job, client)
        if (job["status"] == "succeeded") != (model is not None):
            yield Finding(Figure.MISREPORTED, job["id"], f"{job['status']}, and {'a' if model else 'no'} model")
        if model is not None and job["status"] == "succeeded":
            yield from self._on_model(order, model)

    def _on_events(self, job: dict[str, Any], client: Client) -> Iterator[Finding]:
        events = self._ledger.events(job["id"])
        seqs = [event["seq"] for event in events]
        if seqs != list(range(1, len(seqs) + 1)):
            yield Finding(Figure.MISREPORTED, job["id"], f"its events are numbered {seqs}")
        shown = client.insist("GET", f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").body["data"]
        if [event["seq"] for event in shown] != seqs[::-1][:100]:
            yield Finding(Figure.MISREPORTED, job["id"], "the API's events are not those of the record")
        for before, after in pairwise(events):
            if after["attempt"] < before["attempt"]:
                text = f"attempt {after['attempt']} wrote {after['message']!r} after attempt {before['attempt']} began"
                yield Finding(Figure.DOUBLED, job["id"], text)
        if late := self._ledger.late_steps(job["id"]):
            yield Finding(Figure.DOUBLED, job["id"], f"steps were written when their attempt was over: {late[:5]}")
        if said := self._ledger.late_events(job["id"]):
            yield Finding(Figure.MISREPORTED, job["id"], f"when it had ended, it said {said[:5]}")

    def _on_model(self, order: Order, model: dict[str, Any]) -> Iterator[Finding]:
        weights = self._fleet.data / "artifacts" / "models" / model["artifact"] / "model.safetensors"
        if not weights.is_file():
            yield Finding(Figure.TORN, model["id"], "its weights are not there")
        elif (found := sha256(weights)) != model["weights_sha256"]:
            yield Finding(Figure.TORN, model["id"], "its weights are not those it was made with")
        elif found != self._references[order.spec.name] and not self._computed_otherwise(order.job_id or ""):
            yield Finding(Figure.UNEQUAL, order.job_id or "", f"{order.spec.name}, attempt {model['artifact'][-1]}")

    def _computed_otherwise(self, job_id: str) -> bool:
        """Whether the job said that its weights may differ, since a version that computes otherwise began it."""
        return any(DIFFERENT_ARITHMETIC in event["message"] for event in self._ledger.events(job_id))

    def _on_answers(self) -> Iterator[Finding]:
        for answer in self._history.answers(lambda answer: answer.misdeed() is not None):
            subject = f"{answer.method} {answer.path.partition('?')[0]} by {answer.client}"
            yield Finding(Figure.MISREPORTED, subject, f"{answer.misdeed()}")

    def _on_processes(self) -> Iterator[Finding]:
        for job_id, text in self._watch.hung.items():
            yield Finding(Figure.HUNG, job_id, text)
        for (pid, _), command in self._watch.orphans.items():
            yield Finding(Figure.ORPHANED, str(pid), command)

    def _on_rows(self) -> Iterator[Finding]:
        outbox = self._ledger.rows("SELECT * FROM outbox")
        if outbox:
            yield Finding(Figure.LEAKED_ROWS, "outbox", f"{outbox[:3]}", len(outbox))
        keys = {order.job_id for order in self._load.orders}
        unknown = [row["id"] for row in self._ledger.jobs() if row["id"] not in keys and row["state"] not in ENDED]
        if unknown:
            yield Finding(Figure.LEAKED_ROWS, "jobs", f"nobody was told of {unknown}", len(unknown))

    def _on_artifacts(self) -> Iterator[Finding]:
        root = self._fleet.data / "artifacts"
        models = self._ledger.models()
        for artifact, text in torn_models(root, models):
            yield Finding(Figure.TORN, artifact, text)
        files = {row["id"] for row in self._ledger.rows("SELECT id FROM files WHERE deleted_at IS NULL")}
        alive = {row["id"] for row in self._ledger.jobs() if row["state"] not in ENDED}
        for path, size in leftovers(root, files=files, models={row["artifact"] for row in models}, jobs=alive):
            yield Finding(Figure.LEAKED_BYTES, str(path), f"{size} bytes", size)


def on_what_was_told(order: Order, job: dict[str, Any]) -> Iterator[Finding]:
    """Only legal moves, and no way back from an end."""
    for before, after in pairwise(order.told):
        if before.status == after.status and before.attempt <= after.attempt:
            continue
        legal = after.status == before.status or after.status in _LATER.get(before.status, set())
        if not legal or after.attempt < before.attempt:
            text = f"told {before.status} (attempt {before.attempt}), then {after.status} (attempt {after.attempt})"
            yield Finding(Figure.MISREPORTED, job["id"], text)
    if order.ended and order.ended != job["status"]:
        yield Finding(Figure.MISREPORTED, job["id"], f"told {order.ended}, and is {job['status']}")
    expected = list(range(1, len(order.seqs) + 1))
    if order.seqs != expected:
        yield Finding(Figure.MISREPORTED, job["id"], f"its stream gave the events {order.seqs}")


def on_end(order: Order, job: dict[str, Any]) -> Iterator[Finding]:
    """The end that its client wished for, or one that the fault explains."""
    code = job["error"]["code"] if job["error"] else None
    fine = {
        "succeeded": job["status"] == "succeeded",
        "paused and resumed": job["status"] == "succeeded",
        "cancelled": job["status"] in ("cancelled", "succeeded"),
        "failed": job["status"] == "failed" and code in order.codes,
    }[order.wish]
    if not fine and not (job["status"] == "failed" and code in order.codes):
        yield Finding(Figure.MISREPORTED, job["id"], f"{order.wish} was wished for; it {job['status']} ({code})")
