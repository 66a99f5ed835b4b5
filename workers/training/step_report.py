"""What a step of training tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


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
