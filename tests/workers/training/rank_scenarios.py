"""What the ranks of a training do in `test_ranks.py`, and what one process does in their place.

A scenario is a function of a folder with data and encoders, and of the ranks; one process passes `Ranks()`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api_schemas.methods import Contrastive, Method, ModelOptions
from encoders.loading import AnyEncoder
from storage.tables import Job
from workers.data.prepared import Prepared
from workers.training import following, starting
from workers.training.config import LossConfig, TrainingConfig
from workers.training.following import Follower
from workers.training.mining import MiningConfig
from workers.training.ranks import Order, Ranks
from workers.training.trainer import (
    NonFiniteLossError,
    Notice,
    OutOfMemoryInTraining,
    StepReport,
    Trainer,
    TrainingInterrupted,
)

CONFIG = TrainingConfig(
    loss=LossConfig(temperature=0.1),
    n_epochs=2,
    batch_size=5,  # no even number: shares are unequal
    learning_rate=1e-3,
    warmup_ratio=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    max_steps=6,
    max_seq_length=48,
    seed=0,
    precision="fp32",
)
WHOLE = {"batch_size": 12, "max_steps": 3, "n_epochs": 3}


@dataclass(frozen=True)
class Training:
    """A training from begin to end, without dropout."""

    data: tuple[str, ...] = ("pairs",)
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    rows: slice | None = None  # of each file; None: all


TRAININGS = {
    "pairs": Training(),
    "a learnable temperature": Training(config={"loss": LossConfig(temperature="learnable")}),
    "micro-batches": Training(config={**WHOLE, "micro_batch_size": 2}),
    "labels and SupCon by class": Training(
        ("labels",), {"loss": LossConfig(name="supcon", temperature=0.1, reduction="class")}
    ),
    "views of texts": Training(("texts",), {"view": "deletion"}),
    "hard negatives of the file, in one direction": Training(
        ("triplets",), {"loss": LossConfig(temperature=0.1, symmetric=False)}
    ),
    "mined negatives": Training(config={"hard_negatives": MiningConfig(margin=1.0, per_anchor=2), "max_steps": None}),
    "both directions and Matryoshka": Training(
        config={"loss": LossConfig(temperature="learnable", symmetric=True), "matryoshka_dims": (4, 16)}
    ),
    "some rows of two files": Training(("pairs", "labels"), rows=slice(1, None)),
    "a projection after a frozen encoder": Training(model={"train": "projection", "projection_dim": 16}),
    "an adapter for vectors": Training(("vectors",), {"view": "noise", "max_seq_length": None}),
}


def run_all(rank: int, count: int, port: int, folder: str) -> None:
    """The body of one process. Leaves what it found in `folder`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = Ranks()
    ranks.meet("127.0.0.1", port, rank, count)
    if rank:
        follower = Recording(ranks)
        follower.follow()
        found = follower.found
    else:
        found = {name: scenario(Path(folder), ranks) for name, scenario in SCENARIOS.items()}
        ranks.leave()
    torch.save(found, Path(folder) / f"{rank}.pt")


class Recording(Follower):
    """Keeps what it has after each training, by the scenario's name."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)
        self.found: dict[str, dict[str, Tensor]] = {}

    def prepare(self, content: dict[str, Any]) -> AnyEncoder:
        self.scenario = content["job"]["id"]
        encoder = super().prepare(content)
        if self.scenario in MOST_TEXTS:
            encoder.register_forward_pre_hook(MemoryFor(MOST_TEXTS[self.scenario]))
        return encoder

    def train(self, content: dict[str, Any]) -> Trainer:
        trainer = super().train(content)
        self.found[self.scenario] = weights_of(trainer)
        return trainer


class MemoryFor:
    """Lets an encoder embed so many texts at once, and no more."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, _encoder: torch.nn.Module, arguments: tuple[list[np.ndarray]]) -> None:
        if len(arguments[0]) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


#: For how many texts rank 1 has memory.
MOST_TEXTS = {"memory runs out for one": 4, "memory runs out for good": 0}


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    weights = {**trainer.encoder.state_dict(), **{f"loss.{k}": v for k, v in trainer.loss.state_dict().items()}}
    return {name: tensor.clone() for name, tensor in weights.items()}


def trainer_of(
    name: str, training: Training, folder: Path, ranks: Ranks, *, encoder: str = "plain", **more: Any
) -> Trainer:
    """A trainer as a job makes it, with what the other ranks are told before."""
    datasets = [Prepared.open(folder / "data" / kind) for kind in training.data]
    if training.rows is not None:
        datasets = [data.narrowed(data.rows[training.rows]) for data in datasets]
    method = Method(contrastive=Contrastive(model=ModelOptions(**training.model)))
    reads = "vectors" if datasets[0].vectors is not None else "texts"
    job = Job(id=name, model="tiny/bert", reads=reads, seed=0, method=method.model_dump())
    base = None if reads == "vectors" else folder / encoder
    made = starting.encoder_of(job, method.contrastive, base, datasets[0])
    ranks.tell(Order.PREPARE, following.told(job, base, datasets[0]))
    return Trainer(made, datasets, replace(CONFIG, **training.config), ranks=ranks, **more)


def found_by(trainer: Trainer, on_step: Callable[[StepReport], None] = lambda _: None) -> dict[str, Any]:
    reports: list[StepReport] = []

    def keep(report: StepReport) -> None:
        reports.append(report)
        on_step(report)

    trainer.run(on_step=keep, should_stop=lambda: False)
    return {"reports": reports, "weights": weights_of(trainer)}


def trained(name: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    return found_by(trainer_of(name, TRAININGS[name], folder, ranks))


def with_dropout(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return found_by(trainer_of("dropout", Training(), folder, ranks, encoder="dropout"))


def interrupted(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The same, stopped after two steps and after another, with new trainers that have the state only."""
    state = None
    for steps in (2, 1, 99):
        trainer = trainer_of("interrupted", Training(), folder, ranks, encoder="dropout")
        if state is not None:
            trainer.load_state_dict(state["trainer"])
            trainer.encoder.load_state_dict(state["encoder"])
        left = iter([False] * steps)
        try:
            trainer.run(on_step=lambda _: None, should_stop=lambda left=left: next(left, True))
        except TrainingInterrupted:
            state = copy.deepcopy({"trainer": trainer.state_dict(), "encoder": trainer.encoder.state_dict()})
    return {"weights": weights_of(trainer), "step": trainer.step}


def ended_by_rank_0(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """An error that rank 0 has by itself, between two steps."""
    trainer = trainer_of("ended", Training(), folder, ranks)

    def refuse(report: StepReport) -> None:
        if report.step == 2:
            raise KeyError("the disk is full, for instance")

    try:
        found_by(trainer, refuse)
    except KeyError:
        return {"weights": weights_of(trainer), "step": trainer.step}
    return {}


def not_finite(folder: Path, ranks: Ranks) -> dict[str, Any]:
    trainer = trainer_of("not finite", Training(config={"learning_rate": 1e30, "warmup_ratio": 0.0}), folder, ranks)
    try:
        found_by(trainer)
    except NonFiniteLossError as error:
        return {"error": str(error)}
    return {}


def out_of_memory(name: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    notices: list[Notice] = []
    trainer = trainer_of(name, Training(config=WHOLE), folder, ranks, on_notice=notices.append)
    try:
        found = found_by(trainer)
    except OutOfMemoryInTraining as error:
        found = {"error": str(error)}
    return {**found, "notices": [notice.message for notice in notices]}


SCENARIOS: dict[str, Callable[[Path, Ranks], dict[str, Any]]] = {
    **{name: lambda folder, ranks, name=name: trained(name, folder, ranks) for name in TRAININGS},
    "not finite": not_finite,
    "memory runs out for good": lambda folder, ranks: out_of_memory("memory runs out for good", folder, ranks),
    "memory runs out for one": lambda folder, ranks: out_of_memory("memory runs out for one", folder, ranks),
    "ended": ended_by_rank_0,
    "dropout": with_dropout,
    "interrupted": interrupted,
}
