"""From numpy's memory to where an encoder computes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; on the CPU the same memory.

    On its way to a GPU it lies in pinned memory, so that nobody waits until it is there: steps are prepared while the
    GPU is busy.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
