"""The machine a benchmark runs on: what to print above its figures, and how much fits."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

QUIET_LOAD = 0.5
QUIET_CPUS = 0.1

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_STAT = Path("/proc/stat")
_STATUS = Path("/proc/self/status")


def use_physical_cores() -> int:
    """Let torch use a thread for each physical core this process may run on; how many that is."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else torch.get_num_threads()
    threads = min(_physical_cores() or torch.get_num_threads(), usable)
    torch.set_num_threads(threads)
    return threads


def device() -> str:
    """Where encoders are trained: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(device: torch.device, threads: int) -> list[str]:
    """The machine in a few lines, with a warning if it is not at rest."""
    lines = [
        f"CPU: {_cpu_model()}, {_physical_cores() or 'unknown'} physical cores, {os.cpu_count()} logical",
        f"torch {torch.__version__}, {threads} CPU threads (one for each physical core), Python "
        f"{platform.python_version()}, {platform.system()}",
        f"Device: {device}" + (f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""),
    ]
    load, *_ = os.getloadavg()
    lines.append(f"Load average over the last minute: {load:.2f}")
    if load > QUIET_LOAD:
        lines.append(
            f"WARNING: other programs are running (load above {QUIET_LOAD}). Times are upper bounds, ratios are unsure."
        )
    return lines


class OtherPrograms:
    """How much of the CPUs others have taken since this was made. The load average cannot tell: it counts us too."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = _cpu_seconds_of_others()

    def describe(self) -> str:
        now = _cpu_seconds_of_others()
        if now is None or self._before is None:
            return "unknown: this system has no /proc/stat"
        cores = max(0.0, now - self._before) / (time.monotonic() - self._started)
        line = f"{cores:.2f} CPUs on average"
        return f"WARNING: {line}. Times are upper bounds, ratios are unsure." if cores > QUIET_CPUS else line


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.exists():
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes() -> int:
    """What of this process is in memory now; its peak so far where the system has no /proc."""
    return _status("VmRSS") if _STATUS.exists() else peak_bytes()


def peak_bytes() -> int:
    """The most of this process that was in memory at once."""
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_seconds_of_others() -> float | None:
    """CPU time of all but this process and those of its children that have ended. None: the system does not say."""
    if not _STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system - own.children_user - own.children_system


def _cpu_model() -> str:
    models = [value for key, value in _cpu_fields() if key == "model name"]
    return models[0] if models else platform.processor() or platform.machine()


def _physical_cores() -> int | None:
    """Pairs of socket and core in /proc/cpuinfo. None: it does not say."""
    fields = _cpu_fields()
    sockets = [value for key, value in fields if key == "physical id"]
    cores = [value for key, value in fields if key == "core id"]
    return len(set(zip(sockets, cores, strict=True))) or None


def _cpu_fields() -> list[tuple[str, str]]:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    pairs = [line.partition(":") for line in lines]
    return [(key.strip(), value.strip()) for key, _, value in pairs]
