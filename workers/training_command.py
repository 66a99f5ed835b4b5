"""What a worker starts to train a job: one process, or one on each of the GPUs that it sees.

Nothing here imports torch, nor touches a GPU: the worker's child forks, and lives as long as the training.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from itertools import takewhile
from typing import Literal

#: A driver that hangs must not hang the worker.
_PATIENCE_SECONDS = 20.0


def training_command(job_id: str, attempt: int, *, processes: int | Literal["auto"]) -> list[str]:
    """The command line. It ends as one of `workers.exit_codes` says, in however many processes it trains."""
    training = [sys.executable, "-m", "workers.training.run", job_id, str(attempt)]
    count = max(1, usable_gpus()) if processes == "auto" else processes
    if count == 1:
        return training
    return [sys.executable, "-m", "workers.training.launcher", str(count), *training]


def usable_gpus() -> int:
    """How many GPUs a training may use: those that CUDA_VISIBLE_DEVICES lists, or all."""
    if not _torch_has_cuda():
        return 0
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return _installed_gpus()
    # As CUDA reads it: what stands behind an invalid entry is not seen.
    return sum(1 for _ in takewhile(lambda entry: entry.strip() not in ("", "-1"), listed.split(",")))


def _torch_has_cuda() -> bool:
    """False for wheels that say in their version that they are for CPUs."""
    try:
        return not metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def _installed_gpus() -> int:
    """As the driver's own tool counts them, which in a container is those that it was given."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],  # noqa: S607 (where it lies is the driver's matter)
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())
