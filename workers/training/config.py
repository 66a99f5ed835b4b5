"""What a training run is told: every value decided, but for the two that take the encoder on its machine to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from api_schemas.methods import Contrastive
from workers.training.mining import MiningConfig

#: What the trainer itself resolves: it takes the encoder, the data and the machine to know.
_RESOLVED_IN_TRAINING = {"micro_batch_size", "precision"}


class UnresolvedAutoError(ValueError):
    """A hyperparameter still says `auto`; whoever queues the job decides what that stands for."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised; see `api_schemas.methods.ContrastiveLoss`."""

    name: Literal["ntxent", "supcon"] = "ntxent"
    temperature: float | Literal["learnable"]
    reduction: Literal["pair", "anchor", "class"] | None = None  # None: the loss's own
    symmetric: bool | None = None
    memory_size: int = 0  # texts


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyperparameters of one run. Ranges are those of `api_schemas.jobs`, checked there."""

    loss: LossConfig
    view: Literal["dropout", "deletion", "span", "noise", "masking"] = "dropout"  # of plain texts, or of vectors
    mixing_temperature: float = 1.0  # of several datasets
    bucket_by_length: bool = False
    n_epochs: int
    batch_size: int  # rows: pairs, or labelled texts
    learning_rate: float  # the peak
    warmup_ratio: float  # of all steps
    weight_decay: float
    max_grad_norm: float
    max_steps: int | None  # an upper bound, whatever n_epochs asks for
    max_seq_length: int | None  # tokens, the special ones included; no more than the encoder reads; None for vectors
    seed: int
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    micro_batch_size: int | Literal["auto"] = "auto"  # rows whose texts are in memory at once
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    on_collapse: Literal["warn", "stop"] = "warn"
    matryoshka_dims: tuple[int, ...] = ()
    hard_negatives: MiningConfig | None = None

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Self:
        """What `dataclasses.asdict` has made a dict of."""
        mined = values["hard_negatives"]
        nested = {"loss": LossConfig(**values["loss"]), "hard_negatives": MiningConfig(**mined) if mined else None}
        return cls(**{**values, **nested})

    @classmethod
    def from_method(cls, contrastive: Contrastive, *, seed: int) -> Self:
        """Take over a job's method. Raises UnresolvedAutoError, naming the fields that are still open."""
        values: dict[str, Any] = contrastive.hyperparameters.model_dump()
        loss: dict[str, Any] = contrastive.loss.model_dump()
        data = contrastive.data
        values.pop("trials")
        unresolved = sorted(
            name
            for name, value in (values | loss).items()
            if value in ("auto", "search") and name not in _RESOLVED_IN_TRAINING
        )
        if unresolved:
            raise UnresolvedAutoError(f"Not resolved before training: {', '.join(unresolved)}.")
        return cls(
            **values,
            loss=LossConfig(**loss),
            hard_negatives=MiningConfig(**asked.model_dump()) if (asked := contrastive.hard_negatives) else None,
            view=data.view,
            mixing_temperature=data.mixing_temperature,
            # Not resolved in a job that was queued before the field was there.
            bucket_by_length=data.bucket_by_length is True,
            seed=seed,
            matryoshka_dims=tuple(contrastive.model.matryoshka_dims or ()),
        )
