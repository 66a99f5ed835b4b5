from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from api_schemas.jobs import Checkpointing
from encoders.adaptation import Adaptation
from encoders.text import TextEncoder
from storage import job_history, jobs
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from tests.storage.rows import TEAM, add_job, events_of
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.checkpoints import Checkpoints
from workers.training.config import LossConfig, TrainingConfig
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import StepReport, Trainer

KINDS: dict[str, Callable[[Row], list[Row]]] = {
    "pairs": lambda row: [row],
    "triplets": lambda row: [Row("triplets", (*row.inputs, f"no {row.inputs[0]}"))],
    "views": lambda row: [Row("views", (*row.inputs, f"and {row.inputs[0]}"))],
    "texts": lambda row: [Row("texts", row.inputs[:1])],
    "labels": lambda row: [Row("labels", (text,), row.inputs[0]) for text in row.inputs],
}
PLAIN = LossConfig(temperature=0.1)
LOSSES = {
    "ntxent": PLAIN,
    "supcon": LossConfig(name="supcon", temperature=0.1),
    "learnable": LossConfig(temperature="learnable"),
    "memory": LossConfig(temperature="learnable", memory_size=10),
    "one direction": LossConfig(temperature=0.1, symmetric=False, memory_size=10),
}


class Killed(BaseException):
    """What ends a process without a chance to save."""


class Training:
    """A job's training in this process: each `attempt` begins with a new encoder and has only the files of the last."""

    def __init__(
        self,
        database: Database,
        artifacts: Path,
        base: Path,
        datasets: Sequence[Prepared],
        config: TrainingConfig,
        adaptation: Adaptation,
    ) -> None:
        self.database, self.base, self.datasets, self.config = database, base, datasets, config
        self.adaptation = adaptation
        self.job_id = add_job(database, "running")
        self.stored = JobCheckpoints(ArtifactStore(artifacts), self.job_id)
        self.recorder = Recorder(database, Attempt(self.job_id, 1))

    def attempt(self, *, every_steps: int = 2, killed_after: int | None = None) -> tuple[list[int], dict[str, bytes]]:
        """Train until the end, or until the process dies. Returns the steps taken, and the weights at the end."""
        encoder = TextEncoder.load(self.base)
        self.adaptation.prepare(encoder, seed=0)
        trainer = Trainer(encoder, self.datasets, self.config)
        checkpoints = Checkpoints(self.stored, trainer, self.recorder, Checkpointing(every_steps=every_steps))
        taken: list[int] = []

        def on_step(report: StepReport) -> None:
            self.recorder.step(report)
            checkpoints.after_step(report)
            taken.append(report.step)
            if report.step == killed_after:
                raise Killed

        checkpoints.resume()
        try:
            trainer.run(on_step=on_step, should_stop=lambda: False)
        except Killed:
            self.recorder = Recorder(self.database, Attempt(self.job_id, 1))
        return taken, as_bytes({**encoder.state_dict(), **trainer.loss.state_dict()})

    def messages(self) -> list[str]:
        return [event.message for event in events_of(self.database, self.job_id) if event.type == "message"]


def as_bytes(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


@pytest.fixture
def new_training(
    database: Database, tmp_path: Path, tiny_folder: Path, data: Prepared, config: TrainingConfig
) -> Callable[..., Training]:
    def new(datasets: Sequence[Prepared] = (data,), config: TrainingConfig = config, **adaptation: Any) -> Training:
        return Training(database, tmp_path / "artifacts", tiny_folder, datasets, config, Adaptation(**adaptation))

    return new


@pytest.fixture
def training(new_training: Callable[..., Training]) -> Training:
    return new_training()


# --- to the bit ---


@pytest.mark.parametrize(
    ("kind", "loss", "view"),
    [
        *(("pairs", loss, "dropout") for loss in LOSSES),
        ("labels", "ntxent", "dropout"),
        ("labels", "supcon", "dropout"),
        ("labels", "memory", "dropout"),
        ("texts", "ntxent", "dropout"),
        ("texts", "memory", "deletion"),
        ("texts", "ntxent", "span"),
        ("triplets", "ntxent", "dropout"),
        ("views", "memory", "dropout"),
        ("pairs and labels", "learnable", "dropout"),
    ],
)
def test_a_training_that_is_killed_three_times_ends_at_the_bytes_of_one_that_is_not(
    new_training: Callable[..., Training],
    config: TrainingConfig,
    tiny_folder: Path,
    tmp_path: Path,
    colours: list[Row],
    kind: str,
    loss: str,
    view: Any,
) -> None:
    tokenizer = TextEncoder.load(tiny_folder).tokenizer
    datasets = []
    for name in kind.split(" and "):
        rows = [other for row in colours for other in KINDS[name](row)]
        datasets.append(prepare(iter(rows), tmp_path / name, tokenizer=tokenizer, limit=48))
    config = replace(config, loss=LOSSES[loss], view=view, n_epochs=3, max_steps=9)
    steps, unbroken = new_training(datasets, config).attempt()
    assert len(steps) >= 8

    broken = new_training(datasets, config)
    assert broken.attempt(killed_after=1)[0] == [1]  # before the first checkpoint
    assert broken.attempt(killed_after=3)[0] == [1, 2, 3]
    assert broken.attempt(killed_after=6)[0] == [3, 4, 5, 6]
    rest, resumed = broken.attempt()

    assert rest == steps[6:]
    assert resumed == unbroken


def test_a_run_can_be_killed_at_every_step(new_training: Callable[..., Training], config: TrainingConfig) -> None:
    config = replace(config, loss=LOSSES["memory"])
    steps, unbroken = new_training(config=config).attempt()

    broken = new_training(config=config)
    for step in steps:
        assert broken.attempt(every_steps=1, killed_after=step)[0] == [step]
    nothing_left, resumed = broken.attempt(every_steps=1)

    assert nothing_left == []
    assert resumed == unbroken


@pytest.mark.parametrize("train", ["lora", "projection"])
def test_a_part_of_an_encoder_goes_on_to_the_bit_as_well(
    new_training: Callable[..., Training], config: TrainingConfig, train: str
) -> None:
    config = replace(config, loss=LOSSES["memory"], matryoshka_dims=(4, 16))
    steps, unbroken = new_training(config=config, train=train).attempt()
    broken = new_training(config=config, train=train)
    broken.attempt(killed_after=3)
    rest, resumed = broken.attempt()
    assert rest == steps[2:]
    assert resumed == unbroken


@pytest.mark.parametrize("forgotten", ["optimizer", "loss", "position"])
def test_what_a_checkpoint_holds_is_needed(
    new_training: Callable[..., Training],
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: str,
) -> None:
    """The control: with a part of the state left out, the tests above would fail."""
    config = replace(config, loss=LOSSES["memory"])
    _, unbroken = new_training(config=config).attempt()
    load = Trainer.load_state_dict

    def load_some(trainer: Trainer, state: dict[str, Any]) -> None:
        load(trainer, {**trainer.state_dict(), **{name: part for name, part in state.items() if name != forgotten}})

    monkeypatch.setattr(Trainer, "load_state_dict", load_some)
    broken = new_training(config=config)
    broken.attempt(killed_after=4)

    assert broken.attempt()[1] != unbroken


def test_each_step_is_measured_once_also_if_it_was_taken_twice(training: Training) -> None:
    # Steps are written at most twice a second: the first ones are in the checkpoint only when the process dies.
    training.attempt(killed_after=3)
    training.attempt()

    with training.database.session(TEAM) as session:
        metrics = job_history.metrics(session, jobs.get(session, training.job_id), max_points=100)
    assert [step["step"] for step in metrics] == [1, 2, 3, 4, 5, 6]


# --- which checkpoints there are ---


def test_the_newest_two_are_kept_and_told(training: Training) -> None:
    taken, _ = training.attempt(every_steps=1)

    assert training.stored.steps() == [taken[-1], taken[-2]]
    assert [summary.step for summary in training.stored.summaries()] == [taken[-1], taken[-2]]
    training.stored.remove_all()
    assert training.stored.summaries() == []


def test_a_resumed_run_says_where_it_goes_on(training: Training) -> None:
    training.attempt(killed_after=4)
    training.attempt()

    assert training.messages()[-1] == "Goes on from the checkpoint after step 4 of 6"


def test_what_a_killed_writer_left_is_removed(training: Training, tmp_path: Path) -> None:
    half = tmp_path / "artifacts" / "unfinished" / f"checkpoint-{training.job_id}-3-00"
    half.mkdir()

    training.attempt(killed_after=1)

    assert not half.exists()


def truncate(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    (folder.parent / "2" / "optimizer.safetensors").rename(folder / "optimizer.safetensors")


@pytest.mark.parametrize(
    ("damage", "goes_on_from"),
    [
        pytest.param(truncate, 2, id="truncated"),
        pytest.param(flip, 2, id="one bit"),
        pytest.param(lambda folder: (folder / "manifest.json").unlink(), 2, id="no manifest"),
        pytest.param(lambda folder: (folder / "state.json").write_bytes(b""), 2, id="empty"),
        pytest.param(lambda folder: (folder / "more").touch(), 2, id="a file too many"),
        pytest.param(swap, 0, id="swapped"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    new_training: Callable[..., Training], damage: Callable[[Path], None], goes_on_from: int
) -> None:
    steps, unbroken = new_training().attempt()
    training = new_training()
    training.attempt(killed_after=5)
    assert training.stored.steps() == [4, 2]

    damage(training.stored.folder(4))
    again, resumed = training.attempt()

    assert again == steps[goes_on_from:]
    assert resumed == unbroken
    assert any(m.startswith("The checkpoint after step 4 is passed over: ") for m in training.messages())


@pytest.mark.parametrize("changed", ["weights", "data", "settings"])
def test_a_checkpoint_of_another_run_is_not_taken(
    training: Training,
    tiny_folder: Path,
    tmp_path: Path,
    colours: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    training.attempt(killed_after=5)
    if changed == "settings":
        training.config = replace(training.config, seed=1)
    elif changed == "data":
        tokenizer = TextEncoder.load(tiny_folder).tokenizer
        training.datasets = [prepare(iter(colours[::-1]), tmp_path / "other", tokenizer=tokenizer, limit=48)]
    else:
        encoder = TextEncoder.load(tiny_folder)
        with torch.no_grad():
            encoder.transformer.embeddings.LayerNorm.weight[0] += 1
        monkeypatch.setattr(TextEncoder, "load", lambda folder: encoder)
    taken, _ = training.attempt()

    assert taken[0] == 1
    assert f"The checkpoint after step 4 is passed over: it was made with other {changed}" in training.messages()


def test_another_number_of_threads_is_told(training: Training) -> None:
    training.attempt(killed_after=4)
    path = training.stored.folder(4) / "state.json"
    content = json.loads(path.read_text())
    content["machine"]["threads"] = 64
    with training.stored.publishing(5) as folder:
        for file in path.parent.glob("*.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "state.json").write_text(json.dumps(content))
    training.attempt()

    assert any("threads 64 before, 1 now" in message for message in training.messages())
