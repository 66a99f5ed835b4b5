"""Who trains: Likeness, and sentence-transformers' trainer with its MultipleNegativesRankingLoss.

Both get the same pairs, batch, learning rate, schedule, weight decay and clipping, and the temperature that is the
peer's own default, 1/20. Everything else is each one's default. A step's seconds are those between the ends of two
steps, so that they hold all that a step needs: batches, forward, backward, optimizer, reports.

Each trains in a process of its own: Likeness in the environment that its worker gives a training, the peer in the one
that this process has.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from api_schemas.defaults import resolve
from api_schemas.methods import Method
from bench.machine import device, use_physical_cores
from bench.train_data import Texts, prepared, texts
from encoders.registry import locate
from encoders.text import TextEncoder
from workers.training.config import TrainingConfig
from workers.training.precision import Precision, Probe, probe
from workers.training.tokens import select
from workers.training.trainer import StepReport, Trainer
from workers.training_environment import training_environment

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEMPERATURE = 0.05
LEARNING_RATE = 5e-5
WARMUP, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.01, 1.0

Name = Literal["likeness", "peer"]
Precisions = Mapping[Name, Precision]
TITLES: dict[Name, str] = {"likeness": "Likeness", "peer": "SentenceTransformerTrainer"}


@dataclass
class Trained:
    """What a training took, and the unit vectors (n, d) that its model gives for the texts asked about."""

    seconds: list[float] = field(default_factory=list)  # of each step but the first, which warms up
    vectors: np.ndarray | None = None


@dataclass(frozen=True)
class Training:
    """What both are told. `steps` None: all batches of one epoch."""

    texts: Texts
    batch_size: int
    steps: int | None
    seed: int = 0
    precisions: Precisions = field(default_factory=lambda: {"likeness": "fp32", "peer": "fp32"})
    micro_batch_size: int | None = None
    asked: tuple[str, ...] = ()  # texts to embed afterwards


def probed() -> Probe:
    """MiniLM's passes over short pairs in both precisions, as the trainer times them before a training.

    Here once for all: the few steps of a measurement would not be worth a probe to it.
    """
    encoder = TextEncoder.load(locate(MODEL, None), device=device()).train()
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(texts("short", 64), encoder.tokenizer, Path(folder) / "pairs")
        return probe(encoder, select(data, np.arange(len(data))))


Train = Callable[[Name, Training], Trained]


def train(name: Name, training: Training) -> Trained:
    """Train MiniLM from its published weights."""
    return _CONTESTANTS[name](training)


@contextmanager
def contestants() -> Iterator[Train]:
    """`train`, in a process for each contestant that is kept for all its trainings."""
    environments: dict[Name, dict[str, str]] = {"likeness": training_environment(), "peer": dict(os.environ)}
    with ExitStack() as at_the_end:
        pools = {name: at_the_end.enter_context(_process(environment)) for name, environment in environments.items()}
        yield lambda name, training: pools[name].submit(train, name, training).result()


def _process(environment: dict[str, str]) -> ProcessPoolExecutor:
    before = dict(os.environ)
    os.environ |= environment
    try:
        pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=use_physical_cores)
        pool.submit(os.getpid).result()  # starts it
    finally:
        os.environ.clear()
        os.environ |= before
    return pool


def _likeness(training: Training) -> Trained:
    encoder = TextEncoder.load(locate(MODEL, None), device=device())
    trained, clock = Trained(), _Clock()
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(training.texts, encoder.tokenizer, Path(folder) / "pairs")
        trainer = Trainer(encoder, [data], config(training, rows=len(data)))

        def on_step(_: StepReport) -> None:
            clock.lap()

        trainer.run(on_step=on_step, should_stop=lambda: False)
    trained.seconds = clock.laps[1:]
    if training.asked:
        trained.vectors = encoder.encode(training.asked)
    return trained


def config(training: Training, *, rows: int) -> TrainingConfig:
    """The training in Likeness' words."""
    hyperparameters: dict[str, Any] = {
        "n_epochs": 1 if training.steps is None else 1000,
        "max_steps": training.steps,
        "batch_size": training.batch_size,
        "learning_rate": LEARNING_RATE,
        "warmup_ratio": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "max_seq_length": training.texts.max_seq_length,
        "precision": training.precisions["likeness"],
        "micro_batch_size": training.micro_batch_size or training.batch_size,
    }
    method = Method.model_validate(
        {"contrastive": {"hyperparameters": hyperparameters, "loss": {"temperature": TEMPERATURE}}}
    )
    resolved = resolve(method, None, rows=rows, max_seq_length=training.texts.max_seq_length)
    return TrainingConfig.from_method(resolved.contrastive, seed=training.seed)


def _peer(training: Training) -> Trained:
    # What it would tell others and look up elsewhere has no place in a measurement.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_DISABLED": "true"}
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    clock = _Clock()

    class Listener(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.lap()

    model = SentenceTransformer(str(locate(MODEL, None)), device=device())
    model.max_seq_length = training.texts.max_seq_length
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=training.batch_size,
                num_train_epochs=1,
                max_steps=-1 if training.steps is None else training.steps,
                learning_rate=LEARNING_RATE,
                warmup_steps=WARMUP,  # a share, where it is below 1
                weight_decay=WEIGHT_DECAY,
                max_grad_norm=MAX_GRAD_NORM,
                seed=training.seed,
                bf16=training.precisions["peer"] == "bf16",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list([pair._asdict() for pair in training.texts.pairs]),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[Listener()],
        ).train()
    vectors = model.encode(list(training.asked), normalize_embeddings=True) if training.asked else None
    return Trained(seconds=clock.laps[1:], vectors=vectors)


class _Clock:
    """Seconds between calls of `lap`."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self.laps.append(now - self._last)
        self._last = now
        return self.laps[-1]


_CONTESTANTS = {"likeness": _likeness, "peer": _peer}
