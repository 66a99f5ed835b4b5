"""The training loop.

Errors
├── TrainingInterrupted         it was asked to stop, between two steps
├── NonFiniteLossError          the loss or its gradient is NaN or infinite; the step was not taken
├── EmbeddingsCollapsedError    all embeddings have become alike, and the job asked to be stopped then
└── OutOfMemoryInTraining       a step needed more memory than there is, for one row at a time
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import micro_batches, precision
from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batch
from workers.training.collapse import CollapseAlarm, EmbeddingsCollapsedError
from workers.training.config import TrainingConfig
from workers.training.gradients import BatchGradient, Taken
from workers.training.hard_negatives import HardNegatives
from workers.training.inputs import BatchInputs, Inputs, tokens_in
from workers.training.lack_of_memory import OutOfMemoryInTraining, explaining_lack_of_memory, is_lack_of_memory
from workers.training.losses import NonFiniteEmbeddingsError
from workers.training.matryoshka import AnyLoss, MatryoshkaLoss
from workers.training.mining import MiningStopped
from workers.training.mixing import Mixture
from workers.training.optimizer import adamw
from workers.training.precision import Precision
from workers.training.prefetch import one_ahead
from workers.training.schedule import learning_rate_at, warmup_steps
from workers.training.spread import Spread, alignment, spread

__all__ = [
    "EmbeddingsCollapsedError",
    "NonFiniteLossError",
    "Notice",
    "OutOfMemoryInTraining",
    "Resolved",
    "StepReport",
    "Trainer",
    "TrainingInterrupted",
    "explaining_lack_of_memory",
]

#: How the embeddings of a batch are spread is measured at most at every so many-th step …
_SPREAD_EVERY = 10
#: … but so often in a run, if it has the steps.
_SPREADS_AT_LEAST = 50
#: How many rows of a batch that gave NaN are named.
_ROWS_NAMED = 8


class TrainingInterrupted(Exception):  # noqa: N818 (a request that was met, not an error)
    """Training was asked to stop. `step` steps have been taken; the trainer can go on from there."""

    def __init__(self, step: int, total_steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {total_steps}.")
        self.step = step


class NonFiniteLossError(Exception):
    """The loss or its gradient is NaN or infinite at a step; weights and optimizer are as before the step."""

    code = "non_finite_loss"


class Notice(NamedTuple):
    """What the user should hear of, between the steps."""

    message: str
    level: Literal["info", "warn"]


class Resolved(NamedTuple):
    """What hyperparameters that were `auto` have become, by their names."""

    micro_batch_size: int
    precision: Precision


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
    alignment: float | None = None  # see `workers.training.spread`
    uniformity: float | None = None  # None where it wasn't measured at this step, as the next one
    effective_rank: float | None = None
    padding: float = 0.0  # share of the encoder's tokens that stand for no text; a packed one has none


class Trainer:
    """Trains an encoder in place.

    A run depends on the encoder's weights, the data, the config and what was resolved, and nothing else: each step
    draws its dropout from a seed of its own. An interrupted trainer goes on with another `run`, and a new trainer after
    `load_state_dict`, with the encoder's weights of that moment, ends at the same bits (on one machine).

    Raises ValueError if the rows and the batch size make no batch.
    """

    def __init__(
        self,
        encoder: AnyEncoder,
        datasets: Sequence[Prepared],
        config: TrainingConfig,
        *,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        self.encoder = encoder
        self.datasets = datasets
        self.config = config
        self.inputs = BatchInputs(config, encoder)
        self.batches = Mixture(
            datasets,
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=config.n_epochs,
            max_steps=config.max_steps,
            temperature=config.mixing_temperature,
            bucket_by_length=config.bucket_by_length,
        )
        self.warm_up = warmup_steps(self.batches.total_steps, config.warmup_ratio)
        self.loss = _loss(encoder, config, self.warm_up).to(encoder.device)
        self.optimizer = adamw(encoder, self.loss, config)
        self.gradient = BatchGradient(encoder, self.loss, self._micro_batch_size(), on_halving=self._say_halved)
        self.precision = config.precision  # auto until it is resolved
        self.alarm = CollapseAlarm()
        self.negatives = self._hard_negatives()
        self.step = 0  # steps taken
        self.position = self.batches.start  # of the sampler
        self.trained_tokens = 0
        self._say = on_notice or (lambda _: None)

    @property
    def total_steps(self) -> int:
        return self.batches.total_steps

    def resolve(self) -> Resolved:
        """Decide what is still `auto`, if anything is: the precision is measured. `run` does it where it wasn't done.

        A trainer that is to go on from a state must load it first, since what was resolved is in there.
        """
        if self.precision == "auto":
            self.precision = self._faster_precision()
        return Resolved(self.gradient.micro_batch_size, self.precision)

    def run(self, *, on_step: Callable[[StepReport], None], should_stop: Callable[[], bool]) -> None:
        """Take all steps that are left. Leaves the encoder in eval mode, whatever happens.

        Raises TrainingInterrupted once should_stop(), asked before each step, says so; NonFiniteLossError;
        EmbeddingsCollapsedError, after a step that is reported; OutOfMemoryInTraining.
        """
        used = self.resolve().precision
        self.encoder.train()
        try:
            with closing(self._batches(should_stop)) as batches:
                for batch, inputs in batches:
                    if should_stop():
                        raise TrainingInterrupted(self.step, self.total_steps)
                    with explaining_lack_of_memory(self.config, f"Step {self.step + 1}"):
                        report = self._take_step(batch, inputs, used)
                    on_step(report)
                    self._stop_if_collapsed()
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
            "micro_batch_size": self.gradient.micro_batch_size,
            "precision": self.precision,
            "alarm": self.alarm.state_dict(),
            "negatives": self.negatives.state_dict() if self.negatives else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.step = state["step"]
        self.position = tuple(state["position"])
        self.trained_tokens = state["trained_tokens"]
        self.gradient.micro_batch_size = state["micro_batch_size"]
        self.precision = state["precision"]
        self.alarm.load_state_dict(state["alarm"])
        if self.negatives is not None:
            self.negatives.load_state_dict(state["negatives"])

    def _take_step(self, batch: Batch, inputs: Inputs, used: Precision) -> StepReport:
        began = time.perf_counter()
        learning_rate = self._set_learning_rate()
        taken = self._add_gradient(batch, inputs, used)
        loss, grad_norm = self._clip_gradients(taken.statistics.value, batch)
        self.optimizer.step()
        measured = self._measure(taken)
        seconds = time.perf_counter() - began
        count = tokens_in(inputs)
        self.step += 1
        self.position = batch.after
        self.trained_tokens += count
        found = taken.statistics
        return StepReport(
            step=self.step,
            total_steps=self.total_steps,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            seconds=seconds,
            pairs_per_second=batch.rows / seconds,
            tokens_per_second=count / seconds,
            positive_cosine=found.positive_cosine,
            negative_cosine=found.negative_cosine,
            accuracy=found.accuracy,
            temperature=found.temperature,
            trained_tokens=self.trained_tokens,
            alignment=None if found.positive_cosine is None else alignment(found.positive_cosine),
            uniformity=measured.uniformity if measured else None,
            effective_rank=measured.effective_rank if measured else None,
            padding=taken.padding,
        )

    def _set_learning_rate(self) -> float:
        config = self.config
        rate = learning_rate_at(
            self.step, self.total_steps, config.warmup_ratio, config.learning_rate, config.lr_scheduler
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        return rate

    def _read(self, batch: Batch) -> tuple[Batch, Inputs]:
        """A batch and what of it is encoded. On the thread that reads ahead: nothing that steps change is looked at."""
        return batch, self.inputs(self.datasets[batch.source], batch)

    def _batches(self, should_stop: Callable[[], bool]) -> Generator[tuple[Batch, Inputs]]:
        """What is left of the run, read one ahead where nothing but the position decides what comes."""
        ahead = self.batches.starting_at(self.position)
        if self.negatives is None:
            yield from one_ahead(ahead, self._read)
            return
        for batch in ahead:
            try:
                yield self._read(self._with_negatives(self.negatives, batch, should_stop))
            except MiningStopped as stopped:
                raise TrainingInterrupted(self.step, self.total_steps) from stopped

    def _with_negatives(self, negatives: HardNegatives, batch: Batch, should_stop: Callable[[], bool]) -> Batch:
        self.encoder.eval()
        try:
            return negatives(batch, should_stop)
        finally:
            self.encoder.train()

    def _hard_negatives(self) -> HardNegatives | None:
        config = self.config
        if config.hard_negatives is None or not isinstance(self.encoder, TextEncoder):
            return None
        return HardNegatives(
            self.encoder, self.datasets, config.hard_negatives, seed=config.seed,
            say=lambda message: self._say(Notice(message, "info")),
        )  # fmt: skip

    def _add_gradient(self, batch: Batch, inputs: Inputs, used: Precision) -> Taken:
        try:
            return self.gradient(inputs, batch, precision=used, seed=_step_seed(self.config.seed, self.step))
        except NonFiniteEmbeddingsError as error:
            raise self._non_finite("The embeddings are", batch) from error

    def _clip_gradients(self, value: Tensor, batch: Batch) -> tuple[float, float]:
        """Scale the gradients down to max_grad_norm; returns the loss and the norm they had, both finite."""
        trained = chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        parameters = [parameter for parameter in trained if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # The one place where the step waits for the device, besides the statistics.
        loss, grad_norm = torch.stack([value.detach(), norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad()
            raise self._non_finite("The gradient is" if math.isfinite(loss) else "The loss is", batch)
        # clip_grad_norm_ would multiply all gradients even where there is nothing to clip.
        if grad_norm > self.config.max_grad_norm:
            clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return loss, grad_norm

    def _measure(self, taken: Taken) -> Spread | None:
        """How the step's embeddings are spread, at some steps; the alarm hears of it once the warm-up is over."""
        every = max(1, min(_SPREAD_EVERY, self.total_steps // _SPREADS_AT_LEAST))
        if self.step % every:
            return None
        measured = spread(taken.embeddings)
        if self.step >= self.warm_up and self.alarm.goes_off(measured, taken.statistics.negative_cosine):
            self._say(Notice(self._collapsed(self.step + 1), "warn"))
        return measured

    def _stop_if_collapsed(self) -> None:
        if self.alarm.rung and self.config.on_collapse == "stop":
            raise EmbeddingsCollapsedError(f"{self._collapsed(self.step)} The job was to be stopped then.")

    def _collapsed(self, step: int) -> str:
        return (
            f"All texts get nearly the same embedding, as of step {step} of {self.total_steps}: a model like that "
            f"finds nothing. Try a tenth of the learning rate (it is {self.config.learning_rate:g}), a longer warm-up "
            f"(warmup_ratio is {self.config.warmup_ratio:g}) or a larger batch_size (it is {self.config.batch_size})."
        )

    def _micro_batch_size(self) -> int:
        if self.config.micro_batch_size != "auto":
            return self.config.micro_batch_size
        if not isinstance(self.encoder, TextEncoder):
            return self.config.batch_size  # an adapter holds next to nothing for the backward pass
        longest = max(map(micro_batches.tokens_per_row, self.datasets))
        return micro_batches.automatic_size(self.config.batch_size, longest)

    def _say_halved(self, size: int) -> None:
        self._say(
            Notice(
                f"Step {self.step + 1} ran out of memory. micro_batch_size is {size} from here on: the gradient is the "
                "same, a step takes longer. A smaller micro_batch_size, or max_seq_length, avoids the wasted attempt",
                "warn",
            )
        )

    def _faster_precision(self) -> Precision:
        if self.total_steps < precision.FEWEST_STEPS_TO_PROBE or not isinstance(self.encoder, TextEncoder):
            return "fp32"
        _, inputs = self._read(next(self.batches.starting_at(self.position)))
        self.encoder.train()
        try:
            measured = precision.probe(self.encoder, inputs[: self.gradient.micro_batch_size])
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            self._say(Notice("Precision: fp32, since memory ran out while it was measured", "warn"))
            return "fp32"
        self._say(Notice(str(measured), "info"))
        return measured.choice

    def _non_finite(self, what: str, batch: Batch) -> NonFiniteLossError:
        rate, temperature = self.config.learning_rate, self.loss.loss.temperature
        return NonFiniteLossError(
            f"{what} NaN or infinite at step {self.step + 1} of {self.total_steps}; the step was not taken. "
            f"Its batch holds {self._rows_of(batch)} of the training file. "
            f"Most often a learning rate that is too high (it is {rate:g}) has driven the weights too far, "
            f"or the temperature is too low (it is {temperature:g}). Try a tenth of the learning rate, "
            "then a higher temperature."
        )

    def _rows_of(self, batch: Batch) -> str:
        """The rows of the file that a batch was made of, counted from 1, as words."""
        starts = self.datasets[batch.source].row_starts
        rows = np.unique(np.searchsorted(starts, batch.items, side="right")).tolist()
        named = ", ".join(map(str, rows[:_ROWS_NAMED]))
        more = len(rows) - _ROWS_NAMED
        return f"rows {named} and {more} more" if more > 0 else f"rows {named}"


def _loss(encoder: AnyEncoder, config: TrainingConfig, warm_up: int) -> AnyLoss:
    if config.matryoshka_dims:
        return MatryoshkaLoss(config.loss, dims=config.matryoshka_dims, dimension=encoder.dimension, warm_up=warm_up)
    return BatchLoss(config.loss, dimension=encoder.dimension, warm_up=warm_up)


def _step_seed(seed: int, step: int) -> int:
    """A seed for one step. Mixed, since torch's CPU generator reads only the low 32 bits of a number."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
