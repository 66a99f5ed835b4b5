"""What the rest of the service needs from an encoder, whatever it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

Input_contra = TypeVar("Input_contra", contravariant=True)


class Encoder(Protocol[Input_contra]):
    """Turns inputs into unit vectors: two inputs are as alike as their vectors' dot product says."""

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        ...

    def encode(self, inputs: Sequence[Input_contra], /, *, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """(n, dimension) float32, each row of length 1, in the order of the inputs.

        `progress` hears how many inputs are done, after each batch.
        """
        ...
