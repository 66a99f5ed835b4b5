"""Peak memory of one loss on one batch, above its inputs, each in a process of its own.

`python -m bench.loss_memory DEVICE` reads cases, a line each (NAME ROWS WIDTH PER_LABEL DTYPE), and answers each with
a line: bytes, or `died`, as happens when memory runs out. Importing the libraries takes seconds; so it imports them
once and forks for each case. Until then it computes nothing: no thread and no device is there that a fork would lose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch

from bench.loss_contestants import CONTESTANTS, Case, Name, batch, outcome
from bench.machine import peak_bytes, resident_bytes, use_physical_cores

ROOT = Path(__file__).parent.parent

_RESET_PEAK = Path("/proc/self/clear_refs")


def peaks_in_own_processes(cases: Iterable[Case], device: torch.device) -> Iterator[int | None]:
    """Bytes above the inputs for each case, measured when asked for; None where its process died."""
    command = [sys.executable, "-m", "bench.loss_memory", str(device)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for case in cases:
            server.stdin.write(" ".join(map(str, case)) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline().strip()
            yield int(answer) if answer.isdecimal() else None
        server.stdin.close()


def peak_above_inputs(case: Case, device: torch.device) -> int:
    """Bytes. What a first, tiny call needs (threads, workspaces of the libraries) is there before and not counted."""
    loss = CONTESTANTS[case.name].make()
    outcome(loss, *batch(64, case.width, case.per_label, case.dtype, device))
    embeddings, labels = batch(case.rows, case.width, case.per_label, case.dtype, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outcome(loss, embeddings, labels)
        return torch.cuda.max_memory_allocated(device) - before
    before = _start_of_peak()
    outcome(loss, embeddings, labels)
    return max(0, peak_bytes() - before)  # the kernel's counts of pages are a few off


def _start_of_peak() -> int:
    """Resident bytes now; the peak starts over. Where /proc does not offer that, the peak so far."""
    if not _RESET_PEAK.exists():
        return peak_bytes()
    _RESET_PEAK.write_text("5")
    return resident_bytes()


def main() -> None:
    device = torch.device(sys.argv[1])
    for contestant in CONTESTANTS.values():
        contestant.make()  # imports what it needs
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            name, rows, width, per_label, dtype = line.split()
            use_physical_cores()
            case = Case(cast(Name, name), int(rows), int(width), int(per_label), dtype)
            print(peak_above_inputs(case, device), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            print("died", flush=True)


if __name__ == "__main__":
    main()
