from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from api_schemas.methods import Checkpointing
from encoders.adaptation import Adaptation
from encoders.text import TextEncoder
from storage import job_history, jobs, manifests
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from tests.faults import Fault, Kind, at_every
from tests.storage.rows import TEAM, add_job, events_of
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training import checkpoints as checkpoints_module
from workers.training import state_files
from workers.training.checkpoints import ARITHMETIC, Checkpoints, default_seconds
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

    def attempt(
        self,
        *,
        every_steps: int | None = 2,
        every_seconds: float | None = None,
        keep: int = 2,
        killed_after: int | None = None,
    ) -> tuple[list[int], dict[str, bytes]]:
        """Train until the end, or until the process dies. Returns the steps taken, and the weights at the end."""
        encoder = TextEncoder.load(self.base)
        self.adaptation.prepare(encoder, seed=0)
        trainer = Trainer(encoder, self.datasets, self.config)
        options = Checkpointing(every_steps=every_steps, every_seconds=every_seconds, keep=keep)
        checkpoints = Checkpoints(self.stored, trainer, self.recorder, options)
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


def test_without_a_word_checkpoints_are_written_as_often_as_takes_little_of_the_time() -> None:
    assert [default_seconds(took) for took in (0.0, 0.1, 1.0, 60.0)] == [120, 120, 400, 600]


def test_what_a_job_says_of_seconds_holds_and_else_the_time_that_the_last_one_took(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(step=60)  # every look at it comes a minute after the last
    monkeypatch.setattr(checkpoints_module, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    often, _ = training.attempt(every_steps=None, every_seconds=1.0, keep=10)
    assert len(training.stored.steps()) == len(often)

    training.stored.remove_all()
    training.attempt(every_steps=None, keep=10)
    # The first one after two minutes; it took one, and the next is due ten minutes later.
    assert len(training.stored.steps()) == 1


def test_a_resumed_run_says_where_it_goes_on(training: Training) -> None:
    training.attempt(killed_after=4)
    training.attempt()

    assert training.messages()[-1] == "Goes on from the checkpoint after step 4 of 6"


def test_what_a_killed_writer_left_is_removed(training: Training, tmp_path: Path) -> None:
    half = tmp_path / "artifacts" / "unfinished" / f"checkpoint-{training.job_id}-3-00"
    half.mkdir()

    training.attempt(killed_after=1)

    assert not half.exists()


# --- damaged ones ---


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Keep the first bytes of a file, or all but the last for a negative size."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(name: str, position: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1
        (folder / name).write_bytes(content)

    return damage


def zero_the_tail(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-512] + bytes(512))


def swap_a_file(folder: Path) -> None:
    (folder.parent / "2" / "optimizer.safetensors").rename(folder / "optimizer.safetensors")


def swap_both(folder: Path) -> None:
    folder.rename(folder.parent / "aside")
    (folder.parent / "2").rename(folder)
    (folder.parent / "aside").rename(folder.parent / "2")


def link_a_file(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    path.symlink_to(path.rename(folder.parent / "elsewhere"))


def link_the_folder(folder: Path) -> None:
    folder.symlink_to(folder.rename(folder.parent / "elsewhere"), target_is_directory=True)


DAMAGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "the weights cut short": (cut("encoder.safetensors", -1), 2),
    "the moments cut short": (cut("optimizer.safetensors", -10), 2),
    "the moments cut within their header": (cut("optimizer.safetensors", 100), 2),
    "the state cut in half": (cut("state.json", 200), 2),
    "empty weights": (cut("encoder.safetensors", 0), 2),
    "an empty state": (cut("state.json", 0), 2),
    "an empty summary": (cut("checkpoint.json", 0), 2),
    "an empty manifest": (cut("manifest.json", 0), 2),
    "a manifest cut short": (cut("manifest.json", -5), 2),
    "one bit of the weights": (flip("encoder.safetensors", -1), 2),
    "one bit of the moments": (flip("optimizer.safetensors", 5000), 2),
    "one bit of the state": (flip("state.json", 60), 2),
    "one bit of the manifest": (flip("manifest.json", 60), 2),
    "a tail of zeros": (zero_the_tail, 2),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), 2),
    "no weights": (lambda folder: (folder / "encoder.safetensors").unlink(), 2),
    "a file too many": (lambda folder: (folder / "more").touch(), 2),
    "a pipe too many": (lambda folder: os.mkfifo(folder / "more"), 2),
    "a file of the one before": (swap_a_file, 0),
    "the one before in its place": (swap_both, 0),
    "a link for a file": (link_a_file, 2),
    "a link for the folder": (link_the_folder, 2),
    "a file for the folder": (lambda folder: folder.rename(folder.with_name("x")) and folder.touch(), 2),
}


@pytest.fixture(scope="module")
def ended() -> dict[str, bytes]:
    """The weights at the end of the training that nothing happens to, once one has come there."""
    return {}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    new_training: Callable[..., Training], ended: dict[str, bytes], damage: str
) -> None:
    if not ended:
        ended.update(new_training().attempt()[1])
    act, goes_on_from = DAMAGES[damage]
    training = new_training()
    training.attempt(killed_after=5)
    assert training.stored.steps() == [4, 2]

    act(training.stored.folder(4))
    again, resumed = training.attempt()

    assert again == [1, 2, 3, 4, 5, 6][goes_on_from:]
    assert resumed == ended
    passed_over = [m for m in training.messages() if " is passed over: " in m]
    assert len(passed_over) == (1 if goes_on_from else 2)
    assert passed_over[0].startswith("The checkpoint after step 4 is passed over: ")
    assert training.stored.steps() == [6, 4]
    assert [training.stored.differing(step) for step in (6, 4)] == [[], []]


def test_a_checkpoint_that_the_disk_does_not_give_is_passed_over_and_stays(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new_training()
    training.attempt(killed_after=5)

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "sha256", unreadable(training.stored.folder(4)))
        assert training.attempt(killed_after=3)[0] == [3]

    reason = f"the disk can't read it ({os.strerror(errno.EIO)})"
    assert f"The checkpoint after step 4 is passed over: {reason}" in training.messages()
    assert training.attempt()[0] == [5, 6]


def test_one_that_the_disk_does_not_give_makes_none_that_it_does_give_go(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new_training()
    training.attempt(killed_after=5, keep=1)
    assert training.stored.steps() == [4]

    with monkeypatch.context() as patch:
        patch.setattr(manifests, "sha256", unreadable(training.stored.folder(4)))
        assert training.attempt(killed_after=3, keep=1)[0] == [1, 2, 3]

    assert training.stored.steps() == [4, 2]


def unreadable(folder: Path) -> Callable[[Path], str]:
    """A disk that gives no byte of a folder's files."""
    sha256 = manifests.sha256

    def read(path: Path) -> str:
        if path.parent == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return sha256(path)

    return read


def test_memory_that_ran_out_says_nothing_of_a_checkpoint(
    new_training: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new_training()
    training.attempt(killed_after=5)

    with monkeypatch.context() as patch:
        patch.setattr(state_files, "load_file", raising(MemoryError()))
        with pytest.raises(MemoryError):
            training.attempt()

    assert training.attempt()[0] == [5, 6]


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_arguments: Any) -> Any:
        raise error

    return call


# --- disks that are full or fail ---


@pytest.mark.parametrize(
    ("kind", "number", "at_least"),
    [("write", errno.ENOSPC, 5), ("fsync", errno.EIO, 7), ("rename", errno.EIO, 1), ("mkdir", errno.ENOSPC, 1)],
)
def test_whatever_the_disk_refuses_the_last_checkpoint_stays_and_the_training_ends_at_the_same_bytes(
    new_training: Callable[..., Training],
    config: TrainingConfig,
    tmp_path: Path,
    kind: Kind,
    number: int,
    at_least: int,
) -> None:
    config = replace(config, max_steps=2)
    _, unbroken = new_training(config=config).attempt(every_steps=1)
    training = new_training(config=config)
    training.attempt(every_steps=1, killed_after=1)

    def run(fault: Fault) -> None:
        told: list[int | None] = []
        try:
            assert training.attempt(every_steps=1) == ([2], unbroken)
        except OSError as error:
            told.append(error.errno)
        assert told == ([number] if fault.fired else [])
        assert training.stored.steps() == ([1] if fault.fired else [2, 1])
        assert training.stored.differing(1) == []

    failed = at_every(kind, number, tmp_path / "artifacts", run)

    assert failed >= at_least
    assert training.stored.differing(2) == []
    assert not list((tmp_path / "artifacts" / "unfinished").iterdir())


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


@pytest.mark.parametrize(
    ("before", "told"),
    [({"threads": 64}, "threads 64 before, 1 now"), ({"arithmetic": None}, f"arithmetic 1 before, {ARITHMETIC} now")],
    ids=["threads", "a version that computed otherwise"],
)
def test_what_may_change_the_bytes_of_the_end_is_told(training: Training, before: dict[str, Any], told: str) -> None:
    training.attempt(killed_after=4)
    aside = training.stored.folder(4).rename(training.stored.folder(4).with_name("aside"))
    content = json.loads((aside / "state.json").read_text())
    machine = {**content["machine"], **before}
    content["machine"] = {name: value for name, value in machine.items() if value is not None}
    with training.stored.publishing(4) as folder:
        for file in aside.glob("*.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "state.json").write_text(json.dumps(content))
    training.attempt()

    assert any(told in message for message in training.messages())
