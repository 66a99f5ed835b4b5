"""What it costs a training that nothing of it may be lost: `python -m bench.durability`.

A job on the demo's pairs is trained, in the environment of a training, against PostgreSQL as it is installed, which
forces each commit to disk. Timed are all parts that are there so that the job survives: what its steps tell PostgreSQL,
the look for an order to stop, the checkpoint that is written every few minutes, the lease that another process renews
while it watches the training, and PostgreSQL's own work. What runs beside the training counts as the share that it
takes of all cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import torch
from rich.console import Console

from api_schemas.defaults import MODEL, resolve
from api_schemas.jobs import JobCreate
from api_schemas.methods import Checkpointing, Method
from bench.machine import describe, device, use_physical_cores
from bench.train_contestants import Training, config
from bench.train_data import prepared, texts
from encoders.registry import locate
from encoders.text import TextEncoder
from service.demo.progress import progress
from storage import attempts, files, jobs, leases, preparations, schema, teams
from storage.artifacts import ArtifactStore, StoredFile
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from storage.embedded import embedded_servers
from storage.held_lease import HeldLease
from storage.ids import new_id
from workers.lease import KeptLease, answer_within
from workers.shared_page import SharedPage
from workers.stopping import StopRequest
from workers.training.checkpoints import Checkpoints, default_seconds
from workers.training.recorder import Attempt, Recorder
from workers.training.step_report import StepReport
from workers.training.trainer import Trainer
from workers.training_environment import training_environment
from workers.watch import watch

FLOOR = 0.01
BATCH_SIZE = 64
STEPS = 40
WATCHED_SECONDS = 20.0
_WORKER = "bench"
_SAVES = 3


@dataclass
class Costs:
    """Seconds, of the training's own unless something else is said."""

    steps: list[float] = field(default_factory=list)  # from one report to the next
    told: list[float] = field(default_factory=list)  # to PostgreSQL, of each step
    looked: list[float] = field(default_factory=list)  # for an order to stop, before each step
    saves: list[float] = field(default_factory=list)  # of each checkpoint
    postgres: float = 0.0  # of the CPU, a second
    watcher: float = 0.0  # of the CPU, a second

    def rows(self) -> list[tuple[str, float, str]]:
        """Part, share of the training's time, and what it was measured as."""
        step, cores = median(self.steps), os.cpu_count() or 1
        told, looked, save = mean(self.told), mean(self.looked), median(self.saves)
        return [
            ("steps told to PostgreSQL", told / step, f"{1000 * told:.2f} ms a step of {1000 * step:.0f} ms"),
            ("orders looked for", looked / step, f"{1000 * looked:.3f} ms a step"),
            ("checkpoints", save / default_seconds(save), f"{save:.2f} s every {default_seconds(save):.0f} s"),
            ("lease and watch", self.watcher / cores, f"{1000 * self.watcher:.1f} ms of a core each second"),
            ("PostgreSQL", self.postgres / cores, f"{1000 * self.postgres:.1f} ms of a core each second"),
        ]


def main() -> None:
    options = parse(sys.argv[1:])
    if not Path("/proc/self/stat").exists():
        sys.exit("What other processes take can't be measured here: this system has no /proc.")
    environment = training_environment()
    if any(name not in os.environ for name in environment):  # read once, by a process that begins
        os.execve(sys.executable, [sys.executable, "-m", "bench.durability", *sys.argv[1:]], environment)
    print("\n".join(describe(torch.device(device()), use_physical_cores())))
    with tempfile.TemporaryDirectory() as scratch, progress(Console(stderr=True), "durability") as report:
        costs = measure(Path(scratch), options.steps, options.seconds, report)
    rows = costs.rows()
    total = sum(share for _, share, _ in rows)
    print("", "| part | share of a training | measured |", "|---|---|---|", sep="\n")
    for name, share, measured in rows:
        print(f"| {name} | {share:.2%} | {measured} |")
    verdict = "reached" if total < FLOOR else "missed"
    print(f"| all | {total:.2%} | asked: below {FLOOR:.0%}, {verdict} |")


def measure(scratch: Path, steps: int, seconds: float, report: Callable[[int, int, str], None]) -> Costs:
    """Train so many steps, then save, then watch an idle child for so many seconds."""
    costs = Costs()
    with embedded_servers(scratch / "servers") as (postgres, _):
        database = Database(postgres.url, pool_size=2)
        schema.migrate(database)
        attempt = _running_job(database)
        training = Training(texts("short", BATCH_SIZE * steps), BATCH_SIZE, steps)
        encoder = TextEncoder.load(locate(MODEL, None), device=device())
        data = prepared(training.texts, encoder.tokenizer, scratch / "pairs")
        trainer = Trainer(encoder, [data], config(training, rows=len(data)))
        recorder = Recorder(database, attempt)
        stored = JobCheckpoints(ArtifactStore(scratch / "artifacts"), attempt.job_id)
        checkpoints = Checkpoints(stored, trainer, recorder, Checkpointing(every_seconds=10**6))
        with _cpu_of(postgres.process.pid) as cpu:
            _train(trainer, recorder, checkpoints, costs, report)
        costs.postgres = cpu()
        report(steps, steps, "the watcher")
        with _cpu_of(postgres.process.pid) as cpu:
            costs.watcher = _watcher(database, attempt, seconds)
        costs.postgres += cpu()
        database.dispose()
    return costs


def _train(
    trainer: Trainer,
    recorder: Recorder,
    checkpoints: Checkpoints,
    costs: Costs,
    report: Callable[[int, int, str], None],
) -> None:
    page, last = SharedPage.new(), time.perf_counter()

    def on_step(taken: StepReport) -> None:
        nonlocal last
        began = time.perf_counter()
        saves = taken.step % max(1, taken.total_steps // _SAVES) == 0
        recorder.step(taken)
        checkpoints.after_step(taken)
        if saves:
            recorder.flush()  # so that it isn't the checkpoint's
        told = time.perf_counter()
        if saves:
            checkpoints.save()
            costs.saves.append(time.perf_counter() - told)
        if taken.step > 1:  # the first one warms up
            costs.steps.append(began - last)
            costs.told.append(told - began)
        report(taken.step, taken.total_steps, f"step {taken.step}")
        last = time.perf_counter()

    def should_stop() -> bool:
        began = time.perf_counter()
        over = page.is_over()
        costs.looked.append(time.perf_counter() - began)
        return over

    trainer.run(on_step=on_step, should_stop=should_stop)
    recorder.flush()


def _watcher(database: Database, attempt: Attempt, seconds: float) -> float:
    """Seconds of the CPU that a second takes of a worker whose training runs."""
    held = HeldLease(database, answer_seconds=answer_within(leases.SECONDS))
    held.hold(attempt.job_id, attempt.number, _WORKER)
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"]) as training:
        lease = KeptLease(held, seconds=leases.SECONDS, taken=time.monotonic(), page=SharedPage.new())
        began, used = time.monotonic(), time.process_time()
        with lease:
            watch(training, lease, StopRequest(), stop_seconds=1.0, on_overdue=lambda: True)
        return (time.process_time() - used) / (time.monotonic() - began)


@contextmanager
def _cpu_of(pid: int) -> Iterator[Callable[[], float]]:
    """Of a process and its children: seconds of the CPU for each second since the block began."""
    began, used = time.monotonic(), _cpu_seconds(pid)
    yield lambda: (_cpu_seconds(pid) - used) / (time.monotonic() - began)


def _cpu_seconds(pid: int) -> float:
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # from the third one on
        except OSError:  # it has ended meanwhile
            continue
        if stat.parent.name == str(pid):
            ticks += sum(map(int, fields[11:15]))  # with children that have ended
        elif fields[1] == str(pid):
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _running_job(database: Database) -> Attempt:
    """A job whose first attempt has begun, over a file of which only the row exists."""
    file_id = new_id("file")
    with database.session(teams.DEFAULT_TEAM) as session:
        files.create(session, file_id, filename="pairs.jsonl", purpose="fine-tune", stored=StoredFile(1, "0"))
    verdict = files.Verdict(usable=True, format="pairs", rows=1000, error_count=0, errors=[], summary=None)
    with database.session_across_teams() as session:
        files.record_verdict(session, file_id, verdict)
    with database.session(teams.DEFAULT_TEAM) as session:
        asked = JobCreate(model=MODEL, training_file=file_id)
        job_id = jobs.create(session, asked, files.get(session, file_id), None, max_seq_length=256).id
    with database.session_across_teams() as session:
        row = jobs.get(session, job_id)
        preparations.finish(session, job_id, resolve(Method(**row.method), None, rows=1000, max_seq_length=256))
    with database.session_across_teams() as session:
        attempts.start(session, job_id, 1, _WORKER)
    return Attempt(job_id, 1)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.durability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps to train, 6 at least (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=WATCHED_SECONDS, help="how long the watching process is measured (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.steps < 2 * _SAVES:
        parser.error(f"--steps must be {2 * _SAVES} or more")
    return options


if __name__ == "__main__":
    main()
