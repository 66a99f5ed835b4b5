"""The training loop.

Errors
├── TrainingInterrupted      it was asked to stop, between two steps
├── NonFiniteLossError       the loss or its gradient is NaN or infinite; the step was not taken
└── OutOfMemoryInTraining    a step needed more memory than there is
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import tokens, views
from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batch
from workers.training.config import TrainingConfig
from workers.training.losses import LossStatistics, NonFiniteEmbeddingsError
from workers.training.matryoshka import MatryoshkaLoss
from workers.training.mixing import Mixture

#: A learnable temperature's learning rate over that of the weights. AdamW moves a parameter by about the learning
#: rate a step: log τ has to go a distance of 1 or so in some hundred steps, weights a thousandth of that.
TEMPERATURE_RATE_FACTOR = 100.0


class TrainingInterrupted(Exception):  # noqa: N818 (a request that was met, not an error)
    """Training was asked to stop. `step` steps have been taken; the trainer can go on from there."""

    def __init__(self, step: int, total_steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {total_steps}.")
        self.step = step


class NonFiniteLossError(Exception):
    """The loss or its gradient is NaN or infinite at a step; weights and optimizer are as before the step."""

    code = "non_finite_loss"


class OutOfMemoryInTraining(Exception):  # noqa: N818 (reads as what happened)
    """A step needed more memory than there is."""

    code = "out_of_memory"


@dataclass(frozen=True)
class StepReport:
    """What one step measured. Seconds and rates are the step's own: no loading, saving or reporting."""

    step: int  # from 1
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float  # before clipping
    seconds: float
    pairs_per_second: float  # rows of the batch: pairs, or labelled texts
    tokens_per_second: float
    positive_cosine: float | None
    negative_cosine: float | None
    accuracy: float | None  # share of anchors whose nearest column is a positive
    temperature: float
    trained_tokens: int  # up to and with this step


class Trainer:
    """Trains an encoder in place.

    A run depends on the encoder's weights, the data, the config and nothing else: each step draws its dropout
    from a seed of its own. An interrupted trainer goes on with another `run`, and a new trainer after
    `load_state_dict`, with the encoder's weights of that moment, ends at the same bits (on one machine).

    Raises ValueError if the rows and the batch size make no batch.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        datasets: Sequence[Prepared],
        config: TrainingConfig,
    ) -> None:
        self.encoder = encoder
        self.datasets = datasets
        self.config = config
        self.view = _view(config, encoder)
        self.batches = Mixture(
            datasets,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=config.n_epochs,
            max_steps=config.max_steps,
        )
        self.loss = _loss(encoder, config, self.batches.total_steps).to(encoder.device)
        self.optimizer = _optimizer(encoder, self.loss, config)
        self.step = 0  # steps taken
        self.position = self.batches.start  # of the sampler
        self.trained_tokens = 0

    @property
    def total_steps(self) -> int:
        return self.batches.total_steps

    def run(self, *, on_step: Callable[[StepReport], None], should_stop: Callable[[], bool]) -> None:
        """Take all steps that are left. Leaves the encoder in eval mode, whatever happens.

        Raises TrainingInterrupted once should_stop(), asked before each step, says so; NonFiniteLossError;
        OutOfMemoryInTraining.
        """
        self.encoder.train()
        try:
            for batch in self.batches.starting_at(self.position):
                if should_stop():
                    raise TrainingInterrupted(self.step, self.total_steps)
                with explaining_lack_of_memory(self.config, f"Step {self.step + 1}"):
                    report = self._take_step(batch)
                on_step(report)
        finally:
            self.encoder.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, besides the encoder's weights."""
        return {
            "step": self.step,
            "position": self.position,
            "trained_tokens": self.trained_tokens,
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.step = state["step"]
        self.position = tuple(state["position"])
        self.trained_tokens = state["trained_tokens"]

    def _take_step(self, batch: Batch) -> StepReport:
        began = time.perf_counter()
        learning_rate = self._set_learning_rate()
        torch.manual_seed(_step_seed(self.config.seed, self.step))
        # The encoder packs texts instead of padding them: no need to sort or bucket them by length.
        ids = self._tokens(batch)
        self.optimizer.zero_grad()  # also of a backward pass that came half way
        result = self._forward(ids, batch)
        result.value.backward()  # type: ignore[no-untyped-call]
        loss, grad_norm = self._clip_gradients(result.value)
        # Fused AdamW takes 16–23 ms for MiniLM's 23 million weights on 2 CPU cores, a plain loop 67–100 ms.
        self.optimizer.step()
        seconds = time.perf_counter() - began
        count = sum(map(len, ids))
        self.step += 1
        self.position = batch.after
        self.trained_tokens += count
        return StepReport(
            step=self.step,
            total_steps=self.total_steps,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            seconds=seconds,
            pairs_per_second=batch.rows / seconds,
            tokens_per_second=count / seconds,
            positive_cosine=result.positive_cosine,
            negative_cosine=result.negative_cosine,
            accuracy=result.accuracy,
            temperature=result.temperature,
            trained_tokens=self.trained_tokens,
        )

    def _set_learning_rate(self) -> float:
        rate = learning_rate_at(self.step, self.total_steps, self.config.warmup_ratio, self.config.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        return rate

    def _tokens(self, batch: Batch) -> list[views.Tokens]:
        data = self.datasets[batch.source]
        ids = tokens.select(data, batch.items)
        if data.format != "texts":
            return ids
        return views.apply(self.view, ids, batch.items, seed=self.config.seed, epoch=batch.epoch)

    def _forward(self, ids: list[views.Tokens], batch: Batch) -> LossStatistics:
        try:
            result: LossStatistics = self.loss(self.encoder(ids), batch)
            return result
        except NonFiniteEmbeddingsError as error:
            raise self._non_finite("The embeddings are") from error

    def _clip_gradients(self, value: Tensor) -> tuple[float, float]:
        """Scale the gradients down to max_grad_norm; returns the loss and the norm they had, both finite."""
        trained = chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        parameters = [parameter for parameter in trained if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # The one place where the step waits for the device, besides the statistics.
        loss, grad_norm = torch.stack([value.detach(), norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad()
            raise self._non_finite("The gradient is" if math.isfinite(loss) else "The loss is")
        # clip_grad_norm_ would multiply all gradients even where there is nothing to clip.
        if grad_norm > self.config.max_grad_norm:
            clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return loss, grad_norm

    def _non_finite(self, what: str) -> NonFiniteLossError:
        rate, temperature = self.config.learning_rate, self.loss.loss.temperature
        return NonFiniteLossError(
            f"{what} NaN or infinite at step {self.step + 1} of {self.total_steps}; the step was not taken. "
            f"Most often a learning rate that is too high (it is {rate:g}) has driven the weights too far, "
            f"or the temperature is too low (it is {temperature:g}). Try a tenth of the learning rate, "
            "then a higher temperature."
        )


@contextmanager
def explaining_lack_of_memory(config: TrainingConfig, what: str) -> Iterator[None]:
    """Turn torch's ways of saying that memory ran out into OutOfMemoryInTraining, which names remedies."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise OutOfMemoryInTraining(
            f"{what} needed more memory than there is. Try a smaller batch_size "
            f"(it is {config.batch_size}) or max_seq_length (it is {config.max_seq_length})."
        ) from error


def learning_rate_at(step: int, total_steps: int, warmup_ratio: float, peak: float) -> float:
    """The learning rate of step `step`, from 0: up to the peak in a line, then down to 0 after the last step.

    No step has a learning rate of 0: it would cost its time for nothing.
    """
    rising = warmup_steps(total_steps, warmup_ratio)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * (total_steps - step) / (total_steps - rising)


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """How many steps the learning rate rises for."""
    return int(warmup_ratio * total_steps)


def _view(config: TrainingConfig, encoder: TextEncoder) -> views.View[views.Tokens]:
    """What is made of each of the two copies of a text in datasets of plain texts."""
    if config.view == "dropout":
        return views.unchanged
    kind = views.WordDeletion if config.view == "deletion" else views.SpanCrop
    return kind(continues=encoder.tokenizer.continues())


def _loss(encoder: TextEncoder, config: TrainingConfig, total_steps: int) -> BatchLoss | MatryoshkaLoss:
    warm_up = warmup_steps(total_steps, config.warmup_ratio)
    if config.matryoshka_dims:
        dims = config.matryoshka_dims
        return MatryoshkaLoss(config.loss, dims=dims, dimension=encoder.dimension, warm_up=warm_up)
    return BatchLoss(config.loss, dimension=encoder.dimension, warm_up=warm_up)


def _optimizer(encoder: TextEncoder, loss: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only: biases and LayerNorms have one axis."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
        {"params": list(loss.parameters()), "weight_decay": 0.0, "rate_factor": TEMPERATURE_RATE_FACTOR},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _step_seed(seed: int, step: int) -> int:
    """A seed for one step. Mixed, since torch's CPU generator reads only the low 32 bits of a number."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return any(phrase in str(error) for phrase in said)
