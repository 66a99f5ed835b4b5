"""The negative controls: each takes one of the product's guards away, and the run must then go red.

A guard that can't be found any more is written down in the folder `missing`, and its control counts as not run.
"""

import datetime
import os
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from chaos_patching import when_imported

_FOLDER = os.environ.get("CHAOS_FOLDER", "")


def install() -> None:
    """Take away the guards that CHAOS_GUARDS_OFF names."""
    for guard in filter(None, os.environ.get("CHAOS_GUARDS_OFF", "").split(",")):
        for module, change in _WITHOUT[guard].items():
            when_imported(module, _or_note(guard, change))


def _or_note(guard: str, change: Any) -> Any:
    def try_to_change(module: ModuleType) -> None:
        try:
            change(module)
        except AttributeError as error:
            Path(_FOLDER, "missing", guard).write_text(f"{module.__name__}: {error}")

    return try_to_change


def _no_fencing(attempts: ModuleType) -> None:
    """Every attempt may write, whichever runs."""

    def running(session: Any, job_id: str, *_: Any, **__: Any) -> Any:
        return attempts.job_moves.locked(session, job_id)

    attempts.running  # noqa: B018 — raises AttributeError when the product has no such guard any more
    attempts.running = running
    attempts.renew = lambda *_, **__: False


def _in_place(artifacts: ModuleType) -> None:
    """Files are written where they are looked for, and nothing is forced to disk."""

    @contextmanager
    def publishing(self: Any, target: Path, *, name: str) -> Any:
        target.mkdir(exist_ok=True)
        artifacts.os.fsync, kept = (lambda _: None), artifacts.os.fsync
        try:
            (target / artifacts.MANIFEST).write_text('{"sha256": {}}\n')
            yield target
            artifacts._write_manifest(target)
        finally:
            artifacts.os.fsync = kept

    artifacts.ArtifactStore.publishing  # noqa: B018
    artifacts.ArtifactStore.publishing = publishing
    artifacts.differing = lambda _folder: []


def _sampler_not_restored(trainer: ModuleType) -> None:
    """A resumed training begins its epoch anew."""
    original = trainer.Trainer.load_state_dict

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        original(self, state)
        self.position = self.batches.start

    trainer.Trainer.load_state_dict = load_state_dict


def _no_outbox(queue: ModuleType) -> None:
    """Tasks are handed over after the commit, by whoever committed, or never."""
    waiting: list[tuple[str, list[Any]]] = []

    def put(_session: Any, _team: str, task: str, arguments: Any) -> None:
        waiting.append((task, list(arguments)))

    def dispatch_soon(_database: Any, redis: Any) -> None:
        while waiting:
            queue.enqueue(redis, *waiting.pop())

    queue.put  # noqa: B018
    queue.put = put
    queue.dispatch_soon = dispatch_soon
    queue.dispatch = lambda _database, redis: dispatch_soon(None, redis) or 0
    queue.is_alive = lambda *_: True  # the reconciler's look into the queue, which finds lost tasks too


def _own_clock(attempts: ModuleType) -> None:
    """Leases are reckoned by the clock of whoever asks."""
    from sqlalchemy import bindparam

    attempts._NOW  # noqa: B018
    attempts._NOW = bindparam(
        "here_and_now", callable_=lambda: datetime.datetime.now(datetime.UTC), type_=attempts.Job.lease_expires_at.type
    )


_WITHOUT: dict[str, dict[str, Any]] = {
    "fencing": {"storage.attempts": _no_fencing},
    "durability": {"storage.artifacts": _in_place},
    "state": {"workers.training.trainer": _sampler_not_restored},
    "outbox": {"storage.queue": _no_outbox},
    "clock": {"storage.attempts": _own_clock},
}
