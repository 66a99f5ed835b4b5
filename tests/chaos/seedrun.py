"""One seed from its fleet's start to its verdict."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from tests.chaos.artifacts import sha256
from tests.chaos.campaign import Campaign
from tests.chaos.controls import Control, ControlResult
from tests.chaos.deck import Deck, Hand, reason_against
from tests.chaos.faults.memory import remove_groups
from tests.chaos.findings import Figure, Finding
from tests.chaos.fleet import Fleet, Shape
from tests.chaos.garbage import collect_garbage
from tests.chaos.history import History
from tests.chaos.judge import Judge
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load
from tests.chaos.pace import Pace
from tests.chaos.shots import Shot
from tests.chaos.specs import SPECS
from tests.chaos.storm import NUMBER as STORM
from tests.chaos.storm import Storm
from tests.chaos.tools import Tools
from tests.chaos.watch import Watch
from tests.chaos.world import World

log = structlog.get_logger("chaos")

_SETTLE_SECONDS = 240.0
_OUTBOX_SECONDS = 30.0
_LONGEST_LEASE_SECONDS = 30.0
_LONGEST_STEP_SECONDS = 0.3
_CONTROL_SECONDS = 120.0
_CONTROL_SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What one seed is to do."""

    seed: int
    deck: Deck | Hand
    shape: Shape = Shape()  # noqa: RUF009 — it is frozen
    seconds: float = 1200.0  # after so long no new fault of a row is begun
    storm_seconds: float = 0.0
    busy: int = 2  # orders that are kept alive, those of faults included
    learn: tuple[str, ...] = ()  # specs whose references are trained first, in the same fleet


@dataclass
class Verdict:
    """What came of one seed."""

    seed: int
    shape: Shape
    wanted: dict[int, int]  # faults by row
    fired: Counter[str] = field(default_factory=Counter)  # by row and kind
    accepted: int = 0
    findings: list[Finding] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)  # seconds from a death to running again
    seconds: float = 0.0
    slowness: float = 1.0  # of the machine, in the mean
    folder: Path | None = None  # the fleet's, kept if anything was found

    def fired_of(self, row: int) -> int:
        return sum(count for name, count in self.fired.items() if name.startswith(f"{row}. "))

    def count(self, figure: Figure) -> int:
        return sum(finding.count for finding in self.findings if finding.figure is figure)


class Runner:
    """Runs seeds on one base model, with one set of references."""

    def __init__(self, base_models: Path, tools: Tools, references: Mapping[str, str] | None = None) -> None:
        self._base_models = base_models
        self._tools = tools
        self.references = dict(references or {})

    def train_references(self, world: World, specs: Iterable[str]) -> None:
        """Train each spec once in a world that nothing has disturbed yet, and keep the sums of the weights."""
        orders = {name: world.load.order(SPECS[name]) for name in specs}
        world.load.await_all()
        models = {row["job_id"]: row for row in world.ledger.models()}
        for name, order in orders.items():
            if order.job_id not in models:
                job = world.ledger.job(order.job_id or "") or {}
                raise RuntimeError(f"the undisturbed training of {name} came to nothing: {order.trouble} {job}")
            folder = world.fleet.data / "artifacts" / "models" / models[order.job_id]["artifact"]
            self.references[name] = sha256(folder / "model.safetensors")
        log.info("references", trained=list(orders))

    def run(self, plan: Plan) -> Verdict:
        """Fire what is wanted, wait until all is quiet, and judge."""
        verdict = Verdict(plan.seed, plan.shape, dict(plan.deck.quotas))
        began = time.monotonic()
        rng = random.Random(plan.seed)
        with self._world(plan.shape, rng, verdict) as world:
            verdict.shape = world.fleet.shape
            if plan.learn:
                self.train_references(world, plan.learn)
            world.load.keep_busy(plan.busy, [SPECS[name] for name in self.references])
            campaign = Campaign(world, plan.deck, plan.seed, until=began + plan.seconds)
            campaign.fire_all()
            storm = Storm(world, plan.seed)
            storm.rage(plan.storm_seconds)
            world.load.rest()
            _settle(world, _SETTLE_SECONDS)
            verdict.findings += self._judge(world).findings()
            log.info("judged", findings=[str(finding) for finding in verdict.findings])
            _add_shots(verdict, world, campaign.shots)
            _add_storm(verdict, storm)
            verdict.slowness = world.pace.mean
            verdict.accepted = sum(order.job_id is not None for order in world.load.orders)
            log.info("seed", seed=plan.seed, accepted=verdict.accepted, fired=sum(verdict.fired.values()))
        verdict.seconds = time.monotonic() - began
        return verdict

    def run_without(self, control: Control, seed: int) -> ControlResult:
        """Take a guard away, and fire at each of the rows that it is there for."""
        result = ControlResult(control)
        rng = random.Random(seed)
        with self._world(Shape(guards_off=(control.guard,)), rng) as world:
            if not self.references:
                self.train_references(world, SPECS)
            seen: set[str] = set()
            for row, kinds in control.rows.items():
                if reasons := [reason for kind in kinds if (reason := reason_against(row, kind, self._tools))]:
                    result.not_run[row] = reasons[0]
                    continue
                world.load.keep_busy(2, [SPECS[name] for name in self.references])
                hand = Hand([(row, kind) for kind in kinds])
                campaign = Campaign(world, hand, seed, until=time.monotonic() + _CONTROL_SECONDS)
                campaign.fire_all()
                world.load.rest()  # what still runs when all is judged would be found guilty of it
                _settle(world, _CONTROL_SETTLE_SECONDS)
                verdict = Verdict(seed, world.fleet.shape, {}, findings=self._judge(world).findings())
                _add_shots(verdict, world, campaign.shots)
                new = [finding for finding in verdict.findings if str(finding) not in seen]
                seen |= {str(finding) for finding in new}
                result.findings[row] = [finding for finding in new if finding.figure in control.figures]
                if not verdict.fired_of(row):
                    result.missed[row] = "no fault came to pass"
                if control.guard in world.moments.missing():
                    result.missed[row] = world.moments.missing()[control.guard]
                log.info("control", guard=control.guard, row=row, findings=len(result.findings[row]))
        return result

    def _judge(self, world: World) -> Judge:
        return Judge(world.fleet, world.load, world.history, world.watch, self.references)

    @contextmanager
    def _world(self, shape: Shape, rng: random.Random, verdict: Verdict | None = None) -> Iterator[World]:
        folder = Path(tempfile.mkdtemp(prefix="likeness-chaos-"))
        history = History(folder / "history.jsonl")
        pace = Pace()
        pace.start()
        fleet = Fleet(folder, _at_pace(shape, pace.measure()), self._base_models)
        failed = True
        try:
            fleet.start()
            log.info(
                "fleet_ready", lease=fleet.shape.lease_seconds, slowness=round(pace.slowness, 1), folder=str(folder)
            )
            load = Load(fleet, history, rng, pace)
            load.upload_files()
            watch = Watch(fleet, Ledger(fleet.postgres), pace)
            world = World(fleet, load, history, watch, self._tools, pace)
            world.watch.start()
            yield world
            world.watch.stop()
            failed = False
        finally:
            fleet.stop()
            remove_groups(fleet.name)
            history.close()
            pace.stop()
            if verdict is not None:
                _expect_nobody_left(verdict, fleet)
            if failed or (verdict is not None and verdict.findings):
                log.info("fleet_kept", folder=str(folder))
                if verdict is not None:
                    verdict.folder = folder
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _at_pace(shape: Shape, slowness: float) -> Shape:
    """The shape for a machine that others use too: they would take a short lease, or the time to hit a short job."""
    lease = min(shape.lease_seconds * slowness, max(shape.lease_seconds, _LONGEST_LEASE_SECONDS))
    step = min(shape.step_seconds * slowness, _LONGEST_STEP_SECONDS)
    return replace(shape, lease_seconds=round(lease, 1), step_seconds=step)


def _settle(world: World, seconds: float) -> None:
    """Fair weather, and time for every job to end."""
    world.moments.disarm_all()
    world.fleet.proxies.clear()
    world.load.await_all(seconds)
    deadline = time.monotonic() + _OUTBOX_SECONDS
    while world.ledger.rows("SELECT id FROM outbox") and time.monotonic() < deadline:
        time.sleep(0.2)
    collect_garbage(world.fleet)


def _add_shots(verdict: Verdict, world: World, shots: Iterable[Shot]) -> None:
    for shot in shots:
        verdict.fired[shot.name] += len(shot.fires)
        verdict.findings += shot.findings
        for death in shot.deaths:
            again = world.watch.ran_again(death.job_id, death.attempt)
            if again is None:  # what has become of the job, the judge says
                continue
            verdict.recoveries.append(again - death.at)
            busy = world.watch.all_busy(death.at, again)
            if again - death.at - busy > death.within:
                text = (
                    f"{death.job_id} ran again after {again - death.at:.1f} s, not {death.within:.1f} s; "
                    f"all workers were busy for {busy:.1f} s of them"
                )
                verdict.findings.append(Finding(Figure.OUT_OF_BOUNDS, shot.name, text))


def _add_storm(verdict: Verdict, storm: Storm) -> None:
    for shot in storm.shots:
        verdict.fired[f"{STORM}. {shot.name}"] += len(shot.fires)
        verdict.findings += shot.findings


def _expect_nobody_left(verdict: Verdict, fleet: Fleet) -> None:
    for process in fleet.table.look().values():
        verdict.findings.append(Finding(Figure.ORPHANED, str(process.pid), f"{process.command} outlived the fleet"))
