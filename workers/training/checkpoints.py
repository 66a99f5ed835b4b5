"""Checkpoints: what a run needs to go on after an interruption, and to end at the bytes it would have ended at.

A checkpoint is a folder

    encoder.safetensors, optimizer.safetensors, loss.safetensors    weights, moments, temperature and memory
    evaluation.safetensors    what the base encoder was measured at, and the best weights so far, where there are any
    state.json         the rest of the state, what it belongs to, what made it, and metrics not yet in SQL
    checkpoint.json    what the API tells of it
    manifest.json      SHA-256 sums, written last

published by rename. There are no random states in it: each step draws from a seed of its own, and each epoch's order
from the job's. It belongs to the run whose fingerprints it has (weights at the start, rows trained on and
asked about, config). One that belongs to another run, or differs from its sums, is passed over and removed, with an
event, for the one before. One that the disk can't read just now is passed over too, but not removed: it may be whole.

Why no checkpoint names its attempt: a run is decided by its fingerprints, so a state after step N is the same
whichever attempt wrote it, and a right place to go on from for every other. An attempt that was given up and doesn't
know it can therefore do two things only: publish a step that is right (or already there, and then its own is dropped),
and remove those that are older than its own newest ones, whoever wrote them. It can't publish half of one, nor
reach SQL, where attempts are told apart. What it leaves behind after the job's end, the reconciler removes. A
checkpoint is removed as unfit only after an event said so, which a given-up attempt can't write. On two machines of
different kinds "the same" holds but for rounding; then, too, either state is a right one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch

from api_schemas.methods import Checkpointing
from storage.checkpoints import SUMMARY, JobCheckpoints
from workers.training import state_files
from workers.training.pacing import pause_after
from workers.training.recorder import Recorder
from workers.training.state_files import StateFileError
from workers.training.trainer import StepReport, Trainer

log = structlog.get_logger("likeness.training")

#: What this module writes and reads. A trainer whose state means something else needs another number.
VERSION = 1
#: How steps are computed, down to the last bits: another number whenever the same job no longer ends at the same bytes,
#: so that one which goes on after an upgrade says so. 2: what dropout leaves is added to the rest in one operation.
ARITHMETIC = 2
DEFAULT_SECONDS = 120.0
#: Where writing a checkpoint takes seconds, they are rarer by default, so that it takes such a share of the time …
_SAVING_SHARE = 1 / 400
#: … but no rarer than so: what a crash costs is what was done since.
_RAREST_SECONDS = 600.0
_STATE = "state.json"


class Companion(Protocol):
    """What goes along with a training and has a state of its own, of numbers, strings and tensors."""

    @property
    def fingerprint(self) -> str | None:
        """What it depends on, besides what the trainer does."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of one run. Made before the first step: the encoder's weights are part of what it is."""

    def __init__(
        self,
        stored: JobCheckpoints,
        trainer: Trainer,
        recorder: Recorder,
        options: Checkpointing,
        *,
        evaluation: Companion | None = None,
    ) -> None:
        self._stored = stored
        self._trainer = trainer
        self._evaluation = evaluation
        self._recorder = recorder
        self._keep = options.keep
        self._every_steps = options.every_steps
        self._every_seconds = options.every_seconds
        self._by_default = options.every_steps is None and options.every_seconds is None
        self._run = _fingerprints(trainer, evaluation)
        self._last: StepReport | None = None
        self._saved_step = 0
        self._saved = time.monotonic()
        self._took = 0.0  # seconds, of the last one

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole and of this run, if there is one. Raises StaleAttempt."""
        self._stored.remove_unfinished()
        for step in self._stored.steps():
            try:
                reason = self._loaded(step)
            except OSError as error:
                self._reject(step, f"the disk can't read it ({error.strerror or error})")
                continue
            if reason is None:
                self._saved_step = step
                self._recorder.goes_on_from(step)
                self._recorder.say(f"Goes on from the checkpoint after step {step} of {self._trainer.total_steps}")
                return
            self._reject(step, reason)
            self._recorder.flush()  # which only the attempt that runs can
            self._stored.remove(step)

    def _reject(self, step: int, reason: str) -> None:
        log.warning("checkpoint_rejected", step=step, reason=reason)
        self._recorder.say(f"The checkpoint after step {step} is passed over: {reason}", level="warn")

    def after_step(self, report: StepReport) -> None:
        """Save if it is time to. Raises OSError as the file system does."""
        self._last = report
        steps = report.step - self._saved_step
        seconds = time.monotonic() - self._saved
        every_seconds = default_seconds(self._took) if self._by_default else self._every_seconds
        if (self._every_steps and steps >= self._every_steps) or (every_seconds and seconds >= every_seconds):
            self.save()

    def save(self) -> None:
        """Save the state after the last step, unless that is done. Raises OSError as the file system does."""
        report = self._last
        if report is None or report.step == self._saved_step:
            return
        self._recorder.write_if_possible()
        began = time.monotonic()
        with self._stored.publishing(report.step) as folder:
            self._write(folder, report)
        self._stored.keep_newest(self._keep, step=report.step)
        self._saved_step = report.step
        self._saved = time.monotonic()
        self._took = self._saved - began
        log.info("checkpoint_saved", step=report.step, seconds=round(self._took, 3))

    def _write(self, folder: Path, report: StepReport) -> None:
        trainer = self._trainer
        state = {"encoder": trainer.encoder.state_dict(), **trainer.state_dict()}
        if self._evaluation is not None:
            state["evaluation"] = self._evaluation.state_dict()
        content = {
            "run": self._run,
            "machine": _machine(trainer),
            # The rest is in SQL already: so every step is there once, also if this process can't write there any more.
            "unwritten": [asdict(step) for step in self._recorder.unwritten],
            "last": asdict(report),
            "state": state_files.write(state, folder),
        }
        (folder / _STATE).write_text(json.dumps(content))
        summary = {"created_at": int(time.time()), "train_loss": report.loss}
        (folder / SUMMARY).write_text(json.dumps(summary))

    def _loaded(self, step: int) -> str | None:
        """Take over the state of a checkpoint; if it can't be, why, and then nothing is taken over.

        Raises OSError where the disk can't be read; then, too, nothing is taken over.
        """
        if wrong := self._stored.differing(step):
            return ", ".join(wrong)
        folder = self._stored.folder(step)
        try:
            content = json.loads((folder / _STATE).read_text())
            if others := [name for name, value in self._run.items() if content["run"].get(name, "") != value]:
                return f"it was made with other {' and '.join(others)}"
            state = state_files.read(content["state"], folder)
            unwritten = [StepReport(**values) for values in content["unwritten"]]
            last = StepReport(**content["last"])
        except (ValueError, KeyError, TypeError, AttributeError, StateFileError) as error:
            return f"it can't be read ({error})"
        if last.step != step:  # a folder under another's name
            return f"it is the one after step {last.step}"
        self._trainer.encoder.load_state_dict(state.pop("encoder"))
        if self._evaluation is not None:
            self._evaluation.load_state_dict(state.pop("evaluation"))
        self._trainer.load_state_dict(state)
        self._last = last
        self._recorder.take_over(unwritten)
        self._tell_differences(content["machine"])
        return None

    def _tell_differences(self, before: dict[str, Any]) -> None:
        now, before = _machine(self._trainer), {"processes": 1, "arithmetic": 1, **before}
        changed = [name for name, value in now.items() if before.get(name) != value]
        if changed:
            changes = "; ".join(f"{name} {before.get(name)} before, {now[name]} now" for name in changed)
            but_for = "rounding and the draws of dropout" if "processes" in changed else "rounding"
            self._recorder.say(
                f"Not where the checkpoint was made ({changes}): the weights will be equal to those of an "
                f"uninterrupted training but for {but_for}.",
                level="warn",
            )


def default_seconds(took: float) -> float:
    """How often a checkpoint is written where the job doesn't say, if the last one took so many seconds."""
    return pause_after(took, share=_SAVING_SHARE, least=DEFAULT_SECONDS, most=_RAREST_SECONDS)


def _fingerprints(trainer: Trainer, evaluation: Companion | None) -> dict[str, Any]:
    """What decides a run, by names that people read, as JSON."""
    settings = asdict(trainer.config)
    for resolved in ("micro_batch_size", "precision"):
        # `auto` in the first attempt, and in the next ones what it became, which is in the state.
        del settings[resolved]
    run = {
        "format": VERSION,
        "weights": _weights_sha256(trainer),
        "data": [data.fingerprint for data in trainer.datasets],
        "settings": settings,
    }
    if evaluation is not None:
        run["evaluation"] = evaluation.fingerprint
    as_read: dict[str, Any] = json.loads(json.dumps(run))
    return as_read


def _weights_sha256(trainer: Trainer) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _machine(trainer: Trainer) -> dict[str, Any]:
    """What rounding depends on."""
    device = trainer.encoder.device
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "processes": trainer.ranks.count,
        "arithmetic": ARITHMETIC,
    }


def _processor() -> str:
    """The kind of CPU, and which of torch's kernels it runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())} ({torch.backends.cpu.get_cpu_capability()})"
