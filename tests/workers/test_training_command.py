from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workers import training_command as module
from workers.training_command import training_command, usable_gpus

ALONE = [sys.executable, "-m", "workers.training.run", "job-1", "2"]


@pytest.fixture(autouse=True)
def torch_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.metadata, "version", lambda _name: "2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose tool lists two GPUs, one of them in parts."""
    tool = tmp_path / "nvidia-smi"
    lines = [
        "GPU 0: NVIDIA H100 (UUID: GPU-1)",
        "  MIG 1g.10gb Device 0: (UUID: MIG-1)",
        "GPU 1: NVIDIA H100 (UUID: GPU-2)",
    ]
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_one_process_is_started_as_it_is() -> None:
    assert training_command("job-1", 2, processes=1) == ALONE


def test_several_are_started_by_the_launcher() -> None:
    launched = [sys.executable, "-m", "workers.training.launcher", "3", *ALONE]
    assert training_command("job-1", 2, processes=3) == launched


@pytest.mark.parametrize(
    ("listed", "count"),
    [("0", 1), ("0,1, 3", 3), ("GPU-1,GPU-2", 2), ("", 0), ("-1", 0), ("0,-1,1", 1)],
)
def test_gpus_are_those_that_cuda_is_shown(monkeypatch: pytest.MonkeyPatch, listed: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert usable_gpus() == count
    expected = ALONE if count < 2 else [sys.executable, "-m", "workers.training.launcher", str(count), *ALONE]
    assert training_command("job-1", 2, processes="auto") == expected


def test_or_all_that_the_driver_lists(driver: None) -> None:
    assert usable_gpus() == 2


def test_without_a_driver_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert usable_gpus() == 0
    assert training_command("job-1", 2, processes="auto") == ALONE


def test_a_torch_for_cpus_uses_none(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.metadata, "version", lambda _name: "2.13.0+cpu")

    assert usable_gpus() == 0
