"""The main metric while training: the best weights are kept, and training stops when it no longer rises.

Source: Prechelt, "Early Stopping — But When?", 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StoppedEarly(Exception):  # noqa: N818 (reads as what happened)
    """The metric has not risen for so long that training ends here."""


class EarlyStopping:
    """Looks at the metric every so many steps.

    patience: evaluations in a row without a rise by more than min_delta after which training stops; None: never. A
    smaller rise is still the best so far, whose weights are kept.
    keep_best: whether the weights of the best evaluation are kept, in the main memory.

    Its state is exact: one that is loaded goes on as the one that was saved would have.
    """

    def __init__(
        self,
        encoder: nn.Module,
        score: Callable[[], float],
        *,
        every_steps: int,
        patience: int | None,
        min_delta: float = 0.0,
        keep_best: bool = False,
        say: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self._encoder = encoder
        self._score = score
        self._every_steps = every_steps
        self._patience = patience
        self._min_delta = min_delta
        self._keep_best = keep_best
        self._say = say
        self.history: list[tuple[int, float]] = []  # (step, metric)
        self.best_step: int | None = None
        self.stopped = False
        self._best = float("-inf")
        self._risen_to = float("-inf")  # by more than min_delta
        self._waited = 0  # evaluations since then
        self._weights: dict[str, Tensor] | None = None

    def begin(self, value: float) -> None:
        """The metric before the first step, which counts as an evaluation. Does nothing after `load_state_dict`."""
        if not self.history:
            self._take(0, value)

    def after_step(self, step: int, total_steps: int) -> None:
        """Evaluate if it is time to and not done. Raises StoppedEarly.

        A run that goes on from the state of some step calls this for that step first: its evaluation may be missing.
        """
        due = step % self._every_steps == 0 or step == total_steps
        if due and step > self.history[-1][0]:
            self._evaluate(step, total_steps)

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Leaves the block where training stops early."""
        try:
            yield
        except StoppedEarly as reason:
            self._say(str(reason))

    def restore_best(self) -> int | None:
        """Put the best weights back, if they were to be kept, and return their step; None: the last are in place."""
        if self._weights is None or self.best_step == self.history[-1][0]:
            return None
        self._encoder.load_state_dict(self._weights)
        return self.best_step

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors only."""
        return {
            "history": [list(each) for each in self.history],
            "best_step": self.best_step,
            "best": self._best,
            "risen_to": self._risen_to,
            "waited": self._waited,
            "stopped": self.stopped,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [(int(step), float(value)) for step, value in state["history"]]
        self.best_step = state["best_step"]
        self._best = state["best"]
        self._risen_to = state["risen_to"]
        self._waited = state["waited"]
        self.stopped = state["stopped"]
        self._weights = state["weights"]

    def _evaluate(self, step: int, total_steps: int) -> None:
        self._take(step, self._score())
        if self._patience is not None and self._waited >= self._patience and step < total_steps:
            self.stopped = True
            raise StoppedEarly(
                f"Stopped at step {step} of {total_steps}: the metric was best at step {self.best_step}, "
                f"and has not risen by more than {self._min_delta:g} in its last {self._waited} evaluations"
            )

    def _take(self, step: int, value: float) -> None:
        self.history.append((step, value))
        if self.best_step is None or value > self._best:
            self._best, self.best_step = value, step
            if self._keep_best:
                self._weights = _copied(self._encoder)
        if value > self._risen_to + self._min_delta:
            self._risen_to, self._waited = value, 0
        else:
            self._waited += 1


@torch.no_grad()
def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
