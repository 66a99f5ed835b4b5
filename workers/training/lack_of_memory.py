"""What torch says when memory runs out, and what to tell the user.

Errors
└── OutOfMemoryInTraining    a step needed more memory than there is
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.training.config import TrainingConfig


class OutOfMemoryInTraining(Exception):  # noqa: N818 (reads as what happened)
    """A step needed more memory than there is."""

    code = "out_of_memory"


@contextmanager
def explaining_lack_of_memory(config: TrainingConfig, what: str) -> Iterator[None]:
    """Turn torch's ways of saying that memory ran out into OutOfMemoryInTraining, which names remedies."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemoryInTraining(
            f"{what} needed more memory than there is. Try a smaller batch_size "
            f"(it is {config.batch_size}) or max_seq_length (it is {config.max_seq_length})."
        ) from error


def halved(step: int, size: int) -> str:
    """What to tell of a step that was begun anew with micro-batches of `size`."""
    return (
        f"Step {step} ran out of memory. micro_batch_size is {size} from here on: the gradient is the "
        "same, a step takes longer. A smaller micro_batch_size, or max_seq_length, avoids the wasted attempt"
    )


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The last of them is oneDNN's, which has no other word for it.
    said = (
        "can't allocate memory",
        "not enough memory",
        "ALLOC_FAILED",
        "std::bad_alloc",
        "could not create a primitive",
    )
    return any(phrase in str(error) for phrase in said)
