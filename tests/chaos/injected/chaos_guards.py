"""The negative controls: each takes one of the product's guards away, and the run must then go red.

A guard that can't be found any more is written down in the folder `missing`, and its control counts as not run.
"""

import datetime
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from chaos_patching import when_imported, wrap

_FOLDER = os.environ.get("CHAOS_FOLDER", "")

Change = Callable[[ModuleType], None]


def install() -> None:
    """Take away the guards that CHAOS_GUARDS_OFF names. Before moments are installed, which go around what is left."""
    for guard in _guards_off():
        for module, change in _WITHOUT[guard].items():
            when_imported(module, _or_note(guard, change))


def install_around_moments() -> None:
    """Take away what the product has to look at itself: that the disk says that it fails."""
    if "durability" in _guards_off():
        _ignore_failed_syncs()


def _guards_off() -> list[str]:
    return [guard for guard in os.environ.get("CHAOS_GUARDS_OFF", "").split(",") if guard]


def _or_note(guard: str, change: Change) -> Change:
    def try_to_change(module: ModuleType) -> None:
        try:
            change(module)
        except AttributeError as error:
            Path(_FOLDER, "missing", guard).write_text(f"{module.__name__}: {error}")

    return try_to_change


# --- fencing: whoever once had a job goes on with it, and writes under it ---


def _any_attempt_may_write(attempts: ModuleType) -> None:
    def running(_original: Any, session: Any, job_id: str, *_: Any) -> Any:
        return attempts.job_moves.locked(session, job_id)

    wrap(attempts, "running", running)


def _lost_leases_are_not_noticed(held_lease: ModuleType) -> None:
    def deaf(original: Any, *arguments: Any) -> Any:
        try:
            return original(*arguments)
        except held_lease.StaleAttempt:
            return held_lease.Orders()

    wrap(held_lease.HeldLease, "renew", deaf)
    wrap(held_lease.HeldLease, "orders", deaf)


def _leases_never_end_here(lease: ModuleType) -> None:
    def prolong(original: Any, kept: Any, sent: float) -> None:
        original(kept, sent)  # renewed as ever: whoever is not disturbed keeps its lease
        kept._page.until = sent + 3600.0

    wrap(lease.KeptLease, "_prolong", prolong)


# --- durability: written in place, whatever the disk says, and believed when it is read ---


def _ignore_failed_syncs() -> None:
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        with suppress(OSError):
            real(descriptor)

    os.fsync = fsync


def _in_place(artifacts: ModuleType) -> None:
    @contextmanager
    def publishing(_original: Any, _store: Any, target: Path, *, name: str) -> Any:
        target.mkdir(exist_ok=True)
        yield target
        artifacts.manifests.write(target)

    wrap(artifacts.ArtifactStore, "publishing", publishing)


def _nothing_differs(manifests: ModuleType) -> None:
    wrap(manifests, "differing", lambda _original, _folder: [])


# --- state: a resumed training begins its epoch anew ---


def _sampler_not_restored(trainer: ModuleType) -> None:
    def load_state_dict(original: Any, self: Any, state: Mapping[str, Any]) -> None:
        original(self, state)
        self.position = self.batches.start

    wrap(trainer.Trainer, "load_state_dict", load_state_dict)


# --- outbox: tasks are handed over after the commit by whoever committed, or never ---


def _no_outbox(queue: ModuleType) -> None:
    waiting: list[tuple[str, list[Any]]] = []

    def put(_original: Any, _session: Any, _team: str, task: str, arguments: Any) -> None:
        waiting.append((task, list(arguments)))

    def dispatch(_original: Any, _database: Any, redis: Any) -> int:
        while waiting:
            queue.enqueue(redis, *waiting.pop())
        return 0

    wrap(queue, "put", put)
    wrap(queue, "dispatch", dispatch)
    # The look into the queue finds what the outbox has lost, and the other way round.
    wrap(queue, "top_up", lambda _original, *_, **__: 0)


# --- clock: leases are reckoned by the clock of whoever asks ---


def _own_clock(leases: ModuleType) -> None:
    from sqlalchemy import bindparam

    leases._NOW  # noqa: B018 — raises AttributeError when the product has no such name any more
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)  # noqa: E731
    leases._NOW = bindparam("here_and_now", callable_=now, type_=leases.Lease.expires_at.type)


_WITHOUT: dict[str, dict[str, Change]] = {
    "fencing": {
        "storage.attempts": _any_attempt_may_write,
        "storage.held_lease": _lost_leases_are_not_noticed,
        "workers.lease": _leases_never_end_here,
    },
    "durability": {"storage.artifacts": _in_place, "storage.manifests": _nothing_differs},
    "state": {"workers.training.trainer": _sampler_not_restored},
    "outbox": {"storage.queue": _no_outbox},
    "clock": {"storage.leases": _own_clock},
}
