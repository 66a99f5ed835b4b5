"""A disk that fails at the n-th operation: in this process, at the calls by which Python reaches the system."""

import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors import SafetensorError

from encoders import export

Kind = Literal["write", "fsync", "rename", "mkdir"]

#: No run has so many operations.
_MOST = 300


@dataclass
class Fault:
    """The n-th operation of a kind on what is below a folder, which is refused with an error number.

    done: it is done all the same, and only its answer is lost; of renames.
    """

    kind: Kind
    nth: int
    number: int
    below: Path
    done: bool = False
    seen: int = 0
    fired: bool = False
    given_up: dict[int, int] = field(default_factory=dict)  # files whose fsync was refused: inode → open, to keep it
    asked_again: list[str] = field(default_factory=list)  # of these, those that were used after all

    def meet(self, kind: Kind, path: object) -> None:
        """Raises OSError if this is the operation."""
        if kind != self.kind or not Path(str(path)).is_relative_to(self.below):
            return
        if kind == "mkdir" and Path(str(path)).is_dir():  # which the system says before anything else
            return
        self.seen += 1
        if self.seen == self.nth:
            self.fired = True
            raise OSError(self.number, os.strerror(self.number), str(path))

    def fsync(self, descriptor: int, real: Callable[[int], None]) -> None:
        """Raises OSError if it is this fsync; one of the same file afterwards is written down."""
        path, status = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
        if status.st_ino in self.given_up:
            self.asked_again.append(str(path))
        try:
            self.meet("fsync", path)
        except OSError:
            if stat.S_ISREG(status.st_mode):
                self.given_up[status.st_ino] = os.dup(descriptor)
            raise
        real(descriptor)


@contextmanager
def failing(kind: Kind, nth: int, number: int, below: Path, *, done: bool = False) -> Iterator[Fault]:
    """A disk that refuses the n-th operation during the block, and no other."""
    fault = Fault(kind, nth, number, below, done)
    fsync, rename, mkdir, opened, save = os.fsync, os.rename, os.mkdir, io.open, export.save_file

    def save_file(tensors: Any, path: Any, **options: Any) -> None:
        try:
            fault.meet("write", path)
        except OSError as error:  # as safetensors tells it
            raise SafetensorError(f"Error while serializing: I/O error: x (os error {error.errno})") from error
        save(tensors, path, **options)

    def watched(kind: Kind, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *arguments: Any, **options: Any) -> None:
            if not fault.done:
                fault.meet(kind, path)
            real(path, *arguments, **options)
            if fault.done:
                fault.meet(kind, path)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: fault.fsync(descriptor, fsync))
        patch.setattr(os, "rename", watched("rename", rename))
        patch.setattr(os, "mkdir", watched("mkdir", mkdir))
        patch.setattr(io, "open", lambda *arguments, **options: _opened(fault, opened, *arguments, **options))
        patch.setattr(export, "save_file", save_file)
        yield fault
    for descriptor in fault.given_up.values():
        os.close(descriptor)


def at_every(kind: Kind, number: int, below: Path, run: Callable[[Fault], None], *, done: bool = False) -> int:
    """Run with a fault at the first operation, at the second, and so on, until a run meets none. How many did.

    No file may be used whose fsync was refused.
    """
    for nth in itertools.count(1):
        with failing(kind, nth, number, below, done=done) as fault:
            run(fault)
        assert fault.asked_again == []
        if not fault.fired:
            return nth - 1
        assert nth < _MOST
    raise AssertionError


class _WatchedFile(io.FileIO):
    """A file whose writes may be refused."""

    def __init__(self, fault: Fault, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._fault = fault
        self._path = path

    def write(self, data: Any, /) -> int:
        self._fault.meet("write", self._path)
        return super().write(data)


def _opened(
    fault: Fault,
    real: Callable[..., Any],
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *rest: Any,
) -> Any:
    """`io.open`, of which files that are written to are watched."""
    if isinstance(file, int) or not set(mode) & set("wax+") or not Path(file).is_relative_to(fault.below):
        return real(file, mode, buffering, encoding, errors, newline, *rest)
    raw = _WatchedFile(fault, os.fspath(file), mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
