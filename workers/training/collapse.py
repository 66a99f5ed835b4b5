"""An alarm for embeddings that become all alike, which the loss alone shows late or never.

Errors
└── EmbeddingsCollapsedError    the job asked to be stopped when that happens
"""

from __future__ import annotations

from typing import Any

from workers.training.config import TrainingConfig
from workers.training.spread import Spread

#: Mean cosine of texts that are not alike, above which embeddings count as collapsed. MiniLM on pairs of function names
#: and their documentation, 64 a batch, in 24 steps: 0.07 to 0.08 at a learning rate of 5e-5, up to 0.20 at 5e-4, which
#: both learn; 0.95 after 5 steps and 0.99 after 9 at 5e-3, which then retrieves nothing.
MOST_ALIKE = 0.95
#: Effective rank over the largest possible one, below which embeddings count as collapsed into a few directions, as
#: their cosines need not show. In the same runs 0.80 to 0.86 where they learn; 0.16 at 5e-3, where dropout is the rank
#: that is left.
LEAST_RANK = 0.05
#: How many measurements in a row have to say so.
PATIENCE = 3


class EmbeddingsCollapsedError(Exception):
    """All texts got nearly the same embedding, and the job's `on_collapse` is `stop`."""

    code = "embeddings_collapsed"


def collapsed(step: int, total_steps: int, config: TrainingConfig) -> str:
    """What is known at a step, and what to try."""
    return (
        f"All texts get nearly the same embedding, as of step {step} of {total_steps}: a model like that "
        f"finds nothing. Try a tenth of the learning rate (it is {config.learning_rate:g}), a longer warm-up "
        f"(warmup_ratio is {config.warmup_ratio:g}) or a larger batch_size (it is {config.batch_size})."
    )


class CollapseAlarm:
    """Is told every measurement and goes off once, for good."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.rung = False

    def goes_off(self, spread: Spread, negative_cosine: float | None) -> bool:
        """Whether this measurement is the one that sets the alarm off."""
        alike = negative_cosine is not None and negative_cosine > MOST_ALIKE
        flat = spread.effective_rank < LEAST_RANK * spread.directions
        self.in_a_row = self.in_a_row + 1 if alike or flat else 0
        if self.rung or self.in_a_row < PATIENCE:
            return False
        self.rung = True
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "rung": self.rung}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row, self.rung = state["in_a_row"], state["rung"]
