"""Runs that are evaluated on the way: broken anywhere, they end as if they had not been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api_schemas.methods import Checkpointing, Contrastive
from encoders.text import TextEncoder
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from tests.storage.rows import add_job, events_of
from workers.data.preparation import prepare
from workers.data.row import Row
from workers.evaluation.job_evaluation import JobEvaluation, Subject
from workers.evaluation.split import Split, carved, given
from workers.training.checkpoints import Checkpoints
from workers.training.config import TrainingConfig
from workers.training.recorder import Attempt, Recorder
from workers.training.run import take_steps
from workers.training.tensorboard import EventFile
from workers.training.trainer import Trainer, TrainingInterrupted

THINGS = [
    f"{colour} {thing}" for colour in ("red", "blue", "green", "black") for thing in ("car", "bird", "hat", "cup")
]
ROWS = [Row("pairs", (thing, f"a kind of {thing} here")) for thing in THINGS]
SCORED = [
    Row("scored_pairs", (one, other), score=float(len(set(one.split()) & set(other.split()))))
    for number, one in enumerate(THINGS)
    for other in THINGS[number + 1 :: 3]
]
EVALUATED = {"evaluation": {"every_steps": 2, "metric": "mrr", "keep": "best"}, "early_stopping": {"patience": 2}}


class Killed(BaseException):
    """What ends a process without a chance to save."""


class Asked:
    """Whether to stop, asked before each step and each batch of an evaluation: at the given time it breaks the run."""

    def __init__(self, at: int | None, *, kill: bool) -> None:
        self.times = 0
        self._at = at
        self._kill = kill

    def __call__(self) -> bool:
        self.times += 1
        if self.times == self._at and self._kill:
            raise Killed
        return self.times == self._at


class EvaluatedRun:
    """A job's training in this process, of which each `attempt` begins with a new encoder."""

    def __init__(self, database: Database, artifacts: Path, base: Path, split: Split, config: TrainingConfig) -> None:
        self.database, self.base, self.split, self.config = database, base, split, config
        self.method, self.rows = Contrastive.model_validate(EVALUATED), ROWS
        self.job_id = add_job(database, "running")
        self.stored = JobCheckpoints(ArtifactStore(artifacts), self.job_id)

    def attempt(self, asked: Asked) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The weights at the end, and the evaluation. Raises Killed or TrainingInterrupted."""
        recorder = Recorder(self.database, Attempt(self.job_id, 1))
        trainer = Trainer(TextEncoder.load(self.base), self.split.training, self.config)
        evaluating = JobEvaluation(trainer, self.split, self.method, recorder, asked)
        options = Checkpointing(every_steps=3)
        checkpoints = Checkpoints(self.stored, trainer, recorder, options, evaluation=evaluating)
        with EventFile(self.stored.folder(0).parent.parent / "tensorboard") as board:
            take_steps(trainer, checkpoints, evaluating, recorder, board, asked)
        subject = Subject("job", "file", lambda numbers: {number: self.rows[number] for number in numbers})
        found = evaluating.result(subject)
        assert found is not None
        return {
            name: tensor.numpy().tobytes() for name, tensor in trainer.encoder.state_dict().items()
        }, found.model_dump()

    def messages(self) -> list[str]:
        return [event.message for event in events_of(self.database, self.job_id) if event.type == "message"]


@pytest.fixture
def new_run(
    database: Database, tmp_path: Path, tiny_folder: Path, config: TrainingConfig
) -> Callable[[], EvaluatedRun]:
    data = prepare(iter(ROWS), tmp_path / "data", tokenizer=TextEncoder.load(tiny_folder).tokenizer, limit=48)
    split = carved([data], 0.4, seed=0)
    assert split is not None
    config = replace(config, n_epochs=10, batch_size=4, learning_rate=3e-3, max_steps=None)
    return lambda: EvaluatedRun(database, tmp_path / "artifacts", tiny_folder, split, config)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_a_run_that_is_broken_anywhere_ends_at_equal_bytes_and_an_equal_evaluation(
    new_run: Callable[[], EvaluatedRun], kill: bool
) -> None:
    unbroken = Asked(None, kill=False)
    weights, evaluation = new_run().attempt(unbroken)
    assert evaluation["stopped_early"]
    assert 0 < evaluation["kept_step"] < evaluation["history"][-1]["step"], "the best is in the middle"

    for at in range(1, unbroken.times + 1, 5):
        run = new_run()
        with pytest.raises((Killed, TrainingInterrupted)):
            run.attempt(Asked(at, kill=kill))
        assert run.attempt(Asked(None, kill=False)) == (weights, evaluation), f"broken at {at} of {unbroken.times}"


def test_a_run_that_is_evaluated_on_scored_pairs_goes_on_where_it_broke(
    new_run: Callable[[], EvaluatedRun], tmp_path: Path
) -> None:
    def new_scored_run() -> EvaluatedRun:
        run = new_run()
        tokenizer = TextEncoder.load(run.base).tokenizer
        run.split = given(run.split.training, prepare(iter(SCORED), tmp_path / "scored", tokenizer=tokenizer, limit=48))
        run.method.evaluation.metric, run.rows = "spearman", SCORED
        return run

    unbroken = Asked(None, kill=False)
    weights, evaluation = new_scored_run().attempt(unbroken)
    assert evaluation["metric"] == "spearman"
    assert evaluation["history"][0]["value"] == evaluation["metrics"][0]["base"]

    for at in (1, unbroken.times // 2, unbroken.times):
        run = new_scored_run()
        with pytest.raises(Killed):
            run.attempt(Asked(at, kill=True))
        assert run.attempt(Asked(None, kill=False)) == (weights, evaluation), f"broken at {at} of {unbroken.times}"


def test_a_checkpoint_of_another_split_is_not_taken(new_run: Callable[[], EvaluatedRun]) -> None:
    run = new_run()
    with pytest.raises(Killed):
        run.attempt(Asked(12, kill=True))
    assert run.stored.steps()
    run.split = replace(run.split, id="split-of-other-rows")
    run.attempt(Asked(None, kill=False))

    assert any("it was made with other evaluation" in message for message in run.messages())
