"""Row 24: an upgrade under load, with a worker of the version before, and everything told to go at once."""

from __future__ import annotations

import signal
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from tests.chaos.faults.row import Row
from tests.chaos.fleet import ROOT
from tests.chaos.shots import Shot
from tests.chaos.specs import CHECKPOINT_EVERY
from tests.chaos.world import NotReachedError

_END_SECONDS = 90.0
_MIGRATIONS = "storage/migrations/versions"


def worker_of_the_version_before(shot: Shot) -> None:
    """A job begins in a worker of one migration ago, and goes on, from its checkpoint, in one of today."""
    world = shot.world
    name, *others = shot.rng.sample(world.fleet.named("worker"), len(world.fleet.named("worker")))
    before, folder = _version_before(world.fleet.folder / "before")
    with world.claim(*world.fleet.named("worker")), world.watch.excusing():
        world.fleet.replace(name, cwd=folder)
        try:
            for other in others:
                world.fleet.signal(other, signal.SIGSTOP)
            victim = world.victim(step=CHECKPOINT_EVERY + 1)
        finally:
            for other in others:
                world.fleet.signal(other, signal.SIGCONT)
            world.fleet.replace(name)
    if victim.worker.name == name:
        shot.fire(f"{name} of {before[:12]} under {victim.job_id}")
    shot.wait(victim.order.done, _END_SECONDS)


def everything_told_to_go(shot: Shot) -> None:
    """SIGTERM to every process at once; each is started again."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(1, 20))
    for name in world.fleet.members:
        world.fleet.signal(name, signal.SIGTERM)
    shot.fire(f"under {victim.job_id}")
    shot.wait(victim.order.done, _END_SECONDS)
    row = world.ledger.job(victim.job_id) or {}
    spent = row.get("crashes", 0) + row.get("oom_kills", 0)
    shot.expect(not spent, f"being told to go was counted as {spent} deaths of {victim.job_id}")


def _version_before(folder: Path) -> tuple[str, Path]:
    """The code as it was before its last migration. Raises NotReachedError when the history doesn't reach so far."""
    # A migration that a branch has made comes with its merge.
    mainline = ("log", "--first-parent", "-m", "--diff-filter=A", "-1", "--format=%H")
    newest = _git(*mainline, "--", _MIGRATIONS).decode().strip()
    before = _git("rev-parse", "--verify", f"{newest}^").decode().strip()
    if not folder.exists():
        with tarfile.open(
            fileobj=BytesIO(_git("archive", before, "storage", "workers", "encoders", "api_schemas"))
        ) as tar:
            tar.extractall(folder, filter="data")
    return before, folder


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode:
        raise NotReachedError(f"git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


_KINDS = {
    "a worker of the version before": worker_of_the_version_before,
    "everything told to go": everything_told_to_go,
}
ROWS = (
    Row(
        24,
        "rolling upgrade",
        10,
        _KINDS,
        alone=frozenset(_KINDS),
        needs={"a worker of the version before": "git history"},
    ),
)
