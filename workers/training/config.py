"""What a training run is told: every value decided, nothing left to look up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from api_schemas.jobs import Contrastive


class UnresolvedAutoError(ValueError):
    """A hyperparameter still says `auto`; whoever queues the job decides what that stands for."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised; see `api_schemas.jobs.ContrastiveLoss`."""

    name: Literal["ntxent", "supcon"] = "ntxent"
    temperature: float | Literal["learnable"]
    reduction: Literal["pair", "anchor", "class"] | None = None  # None: the loss's own
    symmetric: bool | None = None
    memory_size: int = 0  # texts


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyperparameters of one run. Ranges are those of `api_schemas.jobs`, checked there."""

    loss: LossConfig
    view: Literal["dropout", "deletion", "span"] = "dropout"  # of plain texts
    n_epochs: int
    batch_size: int  # rows: pairs, or labelled texts
    learning_rate: float  # the peak
    warmup_ratio: float  # of all steps
    weight_decay: float
    max_grad_norm: float
    max_steps: int | None  # an upper bound, whatever n_epochs asks for
    max_seq_length: int  # tokens, the special ones included; no more than the encoder reads
    seed: int
    matryoshka_dims: tuple[int, ...] = ()

    @classmethod
    def from_method(cls, contrastive: Contrastive, *, seed: int) -> Self:
        """Take over a job's method. Raises UnresolvedAutoError, naming the fields that are still `auto`."""
        values: dict[str, Any] = contrastive.hyperparameters.model_dump()
        loss: dict[str, Any] = contrastive.loss.model_dump()
        dims = tuple(contrastive.model.matryoshka_dims or ())
        unresolved = sorted(name for name, value in (values | loss).items() if value == "auto")
        if unresolved:
            raise UnresolvedAutoError(f"Not resolved before training: {', '.join(unresolved)}.")
        return cls(**values, loss=LossConfig(**loss), view=contrastive.data.view, seed=seed, matryoshka_dims=dims)
