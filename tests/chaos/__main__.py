"""Break everything on purpose, and judge from outside: `python -m tests.chaos --help`.

Exit codes: 0 every figure is zero, 1 something was found or a control stayed green, 2 the fleet did not come up.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from storage.logs import configure_logging
from tests.chaos.controls import CONTROLS
from tests.chaos.deck import Deck, Hand, not_run, quotas
from tests.chaos.faults import ROWS
from tests.chaos.fleet import Shape
from tests.chaos.report import Report
from tests.chaos.seedrun import Plan, Runner
from tests.chaos.specs import MODEL, SPECS
from tests.chaos.storm import FULL_SECONDS
from tests.chaos.storm import NUMBER as STORM
from tests.chaos.tools import PRIVATE_MOUNTS, Tools
from tests.encoders.tiny_encoder import write_tiny_encoder

log = structlog.get_logger("chaos")

#: What production has, and the rows that are tried with it as well, with how many faults each.
_PRODUCTION = Shape(lease_seconds=45, tick_seconds=2)
_PRODUCTION_QUOTAS = {1: 2, 2: 2, 3: 1, 4: 5, 8: 1, 9: 2, 10: 1, 11: 1, 12: 1, 13: 1, 16: 1, 18: 1, 19: 1}
#: The commonest faults, for the tests of every day: as few trainings as show them all. A freeze of a lease and more
#: takes long; a test of workers has one.
_SHORT = (
    (1, "killed in a step"),
    (2, "its parent only"),
    (7, "between commit and enqueue"),
    (8, "ended, and back later"),
    (13, "emptied"),
)
_SHORT_SPECS = ("memory",)
_SMALL = Shape(workers=2, inference=False)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for, print the tables, and return the exit code."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.only is not None and not 1 <= asked.only <= asked.seeds:
        parser.error(f"--only: there are seeds 1 to {asked.seeds}")
    configure_logging("INFO")
    for talkative in ("httpx2", "httpcore2", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    tools = Tools()
    if tools.missing("mounts") is None and PRIVATE_MOUNTS not in os.environ:
        _with_private_mounts(arguments)
    report = Report(not_run=not_run(asked.rows, tools))
    with tempfile.TemporaryDirectory(prefix="likeness-chaos-base-") as folder:
        write_tiny_encoder(Path(folder) / MODEL)
        started = True
        try:
            _run(asked, Runner(Path(folder), tools), report, tools)
        except (TimeoutError, RuntimeError) as error:
            log.error("fleet_not_started", reason=str(error))
            started = False
    # Also of a run that did not come to its end: what was found so far cost an hour.
    sys.stdout.write("\n" + report.text() + "\n")
    report.write(asked.report)
    if not started:
        return 2
    return 0 if report.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="the first seed; printed"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="how many seeds; they share the faults between them. 0: only what else is asked for",
    )
    parser.add_argument(
        "--only",
        type=int,
        metavar="K",
        help="of the seeds the Kth alone, with its share of the faults: repeat one of them",
    )
    parser.add_argument("--full", action="store_true", help="all faults of each row, not a quarter of them")
    parser.add_argument("--rows", type=_rows, default=(*ROWS, STORM), metavar="1,2,…", help="rows of the fault table")
    parser.add_argument("--short", action="store_true", help="one small fleet, the commonest faults once")
    parser.add_argument(
        "--minutes", type=float, help="begin no fault after so many minutes; fewer than wanted may fire"
    )
    parser.add_argument(
        "--production", action="store_true", help="also some of each row with production's lease of 45 s"
    )
    parser.add_argument("--controls", action="store_true", help="also without each guard in turn; that must go red")
    parser.add_argument(
        "--report", type=Path, default=Path("build/chaos"), help="where chaos.json and chaos.md are left"
    )
    return parser


def _run(asked: argparse.Namespace, runner: Runner, report: Report, tools: Tools) -> None:
    log.info("chaos", seed=asked.seed, seeds=asked.seeds, rows=list(asked.rows), short=asked.short)
    if asked.short:
        report.add(runner.run(Plan(asked.seed, Hand(_SHORT), _SMALL, busy=0, learn=_SHORT_SPECS)))
        return
    deadline = time.monotonic() + (asked.minutes or 10**6) * 60
    rows = [row for row in asked.rows if row != STORM]
    storm = FULL_SECONDS / (1 if asked.full else 4 * max(asked.seeds, 1)) if STORM in asked.rows else 0.0
    for index in range(asked.seeds) if asked.only is None else [asked.only - 1]:
        left = (deadline - time.monotonic()) / (asked.seeds - index)
        wanted = quotas(rows, full=asked.full, seed_index=index, seeds=asked.seeds)
        deck = Deck(wanted, random.Random(asked.seed + index), tools)
        plan = Plan(
            asked.seed + index,
            deck,
            seconds=left,
            storm_seconds=min(storm, left / 3),
            learn=() if runner.references else tuple(SPECS),
        )
        report.add(runner.run(plan))
        report.write(asked.report)  # whatever comes of the rest
    if asked.production:
        wanted = {row: count for row, count in _PRODUCTION_QUOTAS.items() if row in rows}
        deck = Deck(wanted, random.Random(asked.seed), tools)
        learn = () if runner.references else tuple(SPECS)
        report.add(runner.run(Plan(asked.seed, deck, _PRODUCTION, seconds=600, learn=learn)))
        report.write(asked.report)
    for control in CONTROLS if asked.controls else ():
        if set(control.rows) & set(rows):
            report.controls.append(runner.run_without(control, asked.seed))


def _rows(text: str) -> tuple[int, ...]:
    rows = tuple(int(word) for word in text.split(","))
    if unknown := [row for row in rows if row not in ROWS and row != STORM]:
        raise argparse.ArgumentTypeError(f"there is no row {unknown[0]}; there are {[*ROWS, STORM]}")
    return rows


def _with_private_mounts(arguments: Sequence[str]) -> None:
    """Begin again where a fleet's disk can be small without anybody else seeing it, and is gone with this process."""
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.chaos", *arguments]
    os.environ[PRIVATE_MOUNTS] = "1"
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
