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
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import micro_batches, non_finite, precision
from workers.training.batches import Batch
from workers.training.collapse import CollapseAlarm, EmbeddingsCollapsedError, collapsed
from workers.training.config import TrainingConfig
from workers.training.gradients import BatchGradient, Taken
from workers.training.hard_negatives import HardNegatives
from workers.training.inputs import BatchInputs, Drawn, tokens_in
from workers.training.lack_of_memory import (
    OutOfMemoryInTraining,
    explaining_lack_of_memory,
    halved,
    is_lack_of_memory,
)
from workers.training.losses import NonFiniteEmbeddingsError
from workers.training.matryoshka import loss_of
from workers.training.mining import MiningStopped
from workers.training.mixing import Mixture
from workers.training.non_finite import NonFiniteLossError
from workers.training.optimizer import adamw
from workers.training.precision import Precision
from workers.training.prefetch import one_ahead
from workers.training.ranks import Order, OutOfMemoryTogether, Ranks
from workers.training.schedule import learning_rate_at, warmup_steps
from workers.training.spread import Spread, alignment, spread
from workers.training.step_report import StepReport

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


class TrainingInterrupted(Exception):  # noqa: N818 (a request that was met, not an error)
    """Training was asked to stop. `step` steps have been taken; the trainer can go on from there."""

    def __init__(self, step: int, total_steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {total_steps}.")
        self.step = step


class Notice(NamedTuple):
    """What the user should hear of, between the steps."""

    message: str
    level: Literal["info", "warn"]


class Resolved(NamedTuple):
    """What hyperparameters that were `auto` have become, by their names."""

    micro_batch_size: int
    precision: Precision


class Trainer:
    """Trains an encoder in place.

    A run depends on the encoder's weights, the data, the config and what was resolved, and nothing else: each step
    draws its dropout from a seed of its own. An interrupted trainer goes on with another `run`, and a new trainer after
    `load_state_dict`, with the encoder's weights of that moment, ends at the same bits (on one machine).

    With several ranks, rank 0 does `run` and the others `follow`: each encodes its share of every batch, and all take
    the step of the whole batch. It differs from that of one process by rounding and by the draws of dropout, which go
    by rank; an interrupted run goes on to the same bits in as many processes as it began with.

    Raises ValueError if the rows and the batch size make no batch.
    """

    def __init__(
        self,
        encoder: AnyEncoder,
        datasets: Sequence[Prepared],
        config: TrainingConfig,
        *,
        on_notice: Callable[[Notice], None] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.encoder = encoder
        self.ranks = ranks or Ranks()
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
        self.loss = loss_of(config, dimension=encoder.dimension, warm_up=self.warm_up, shared=self.ranks.count > 1).to(
            encoder.device
        )
        self.optimizer = adamw(encoder, self.loss, config)
        self.gradient = BatchGradient(
            encoder, self.loss, self._micro_batch_size(), on_halving=self._say_halved, ranks=self.ranks
        )
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
            with self.ranks.leading(self._told()), closing(self._batches(should_stop)) as batches:
                for drawn in batches:
                    if should_stop():
                        raise TrainingInterrupted(self.step, self.total_steps)
                    self.ranks.tell(Order.STEP)
                    with explaining_lack_of_memory(self.config, f"Step {self.step + 1}"):
                        report = self._take_step(drawn, used)
                    on_step(report)
                    self._stop_if_collapsed()
        finally:
            self.encoder.eval()

    def follow(self) -> None:
        """Take the steps that rank 0 takes, as one of the others, until it takes no more.

        Before, `load_state_dict` must have been given what rank 0 goes on from. Raises what rank 0 doesn't raise.
        """
        used = self.resolve().precision
        self.encoder.train()
        try:
            with closing(self._batches(lambda: False)) as batches:
                while (heard := self.ranks.hear()).order is not Order.END:
                    if heard.order is Order.MINED and self.negatives is not None:
                        self.negatives.take_over(heard.content)
                        continue
                    # Rank 0 has these as well, and says what comes next.
                    with suppress(NonFiniteLossError, OutOfMemoryTogether):
                        self._take_step(next(batches), used)
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

    def _told(self) -> dict[str, Any]:
        """What the other ranks need to `follow`."""
        if self.ranks.count == 1:
            return {}
        rows = [None if data.chosen is None else torch.from_numpy(data.chosen.copy()) for data in self.datasets]
        return {
            "config": asdict(self.config),
            "data": [
                {"folder": str(data.folder), "rows": chosen} for data, chosen in zip(self.datasets, rows, strict=True)
            ],
            "encoder": self.encoder.state_dict(),
            "state": self.state_dict(),
        }

    def _take_step(self, drawn: Drawn, used: Precision) -> StepReport:
        batch = drawn.batch
        began = time.perf_counter()
        learning_rate = self._set_learning_rate()
        taken = self._add_gradient(drawn, used)
        loss, grad_norm = self._clip_gradients(taken.statistics.value, batch)
        with self.ranks.together():
            self.optimizer.step()
        measured = self._measure(taken)
        count, encoded = self.ranks.summed(tokens_in(drawn.inputs), taken.tokens)
        seconds = time.perf_counter() - began
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
            padding=1.0 - count / encoded if encoded else 0.0,
        )

    def _set_learning_rate(self) -> float:
        config = self.config
        rate = learning_rate_at(
            self.step, self.total_steps, config.warmup_ratio, config.learning_rate, config.lr_scheduler
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        return rate

    def _read(self, batch: Batch) -> Drawn:
        """On the thread that reads ahead: nothing that steps change is looked at."""
        share = self.ranks.share(batch)
        return Drawn(batch, share, self.inputs(self.datasets[batch.source], share))

    def _batches(self, should_stop: Callable[[], bool]) -> Generator[Drawn]:
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
            on_mined=lambda mined: self.ranks.tell(Order.MINED, mined),
        )  # fmt: skip

    def _add_gradient(self, drawn: Drawn, used: Precision) -> Taken:
        seed = _step_seed(self.config.seed, self.step, self.ranks.rank)
        try:
            return self.gradient(drawn.inputs, drawn.share, rows=drawn.batch.rows, precision=used, seed=seed)
        except NonFiniteEmbeddingsError as error:
            raise self._non_finite("The embeddings are", drawn.batch) from error

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
        measured = spread(self.ranks.every_row(taken.embeddings))
        if self.step >= self.warm_up and self.alarm.goes_off(measured, taken.statistics.negative_cosine):
            self._say(Notice(collapsed(self.step + 1, self.total_steps, self.config), "warn"))
        return measured

    def _stop_if_collapsed(self) -> None:
        if self.alarm.rung and self.config.on_collapse == "stop":
            told = collapsed(self.step, self.total_steps, self.config)
            raise EmbeddingsCollapsedError(f"{told} The job was to be stopped then.")

    def _micro_batch_size(self) -> int:
        if self.config.micro_batch_size != "auto":
            return self.config.micro_batch_size
        if not isinstance(self.encoder, TextEncoder):
            return self.config.batch_size  # an adapter holds next to nothing for the backward pass
        longest = max(map(micro_batches.tokens_per_row, self.datasets))
        return micro_batches.automatic_size(self.config.batch_size, longest)

    def _say_halved(self, size: int) -> None:
        self._say(Notice(halved(self.step + 1, size), "warn"))

    def _faster_precision(self) -> Precision:
        if self.total_steps < precision.FEWEST_STEPS_TO_PROBE or not isinstance(self.encoder, TextEncoder):
            return "fp32"
        inputs = self._read(next(self.batches.starting_at(self.position))).inputs
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
        return non_finite.explained(
            what, batch, self.datasets[batch.source], self.config,
            step=self.step + 1, total_steps=self.total_steps, temperature=self.loss.loss.temperature,
        )  # fmt: skip


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step. Mixed, since torch's CPU generator reads only the low 32 bits of a number."""
    # Trailing zeros change nothing: rank 0 draws what one process alone does.
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
