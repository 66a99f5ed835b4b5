"""Named moments in the product's life, and what the driver has armed for them.

An armed fault is a file in the folder `armed`, JSON; `tests.chaos.moments` writes it. A process that comes to its
moment moves it to `fired`, with its own pid, and does the action.
"""

import json
import os
import signal
import sys
import time
from _thread import get_ident
from contextlib import suppress
from types import ModuleType
from typing import Any

from chaos_patching import when_imported, wrap

_FOLDER = os.environ.get("CHAOS_FOLDER", "")
_PROCESS = os.environ.get("CHAOS_PROCESS", "")
_STEP_SECONDS = float(os.environ.get("CHAOS_STEP_SECONDS", "0"))
_NEWS_EVERY_SECONDS = 0.2

_listdir, _rename, _replace, _fsync, _getpid = os.listdir, os.rename, os.replace, os.fsync, os.getpid
_seen: dict[str, int] = {}
_syncing_path = ""


def install() -> None:
    """Watch the moments of this process."""
    os.rename = _renaming(_rename)
    os.replace = _renaming(_replace)
    os.fsync = _syncing
    when_imported("workers.training.trainer", _in_steps)
    when_imported("workers.training.recorder", _with_news_at_once)
    when_imported("psycopg", _around_commits)
    when_imported("storage.queue", _before_enqueueing)


def reached(moment: str) -> None:
    """Do what is armed for this moment, if anything is."""
    for name in _listdir(f"{_FOLDER}/armed"):
        if name.partition("~")[0] == moment.replace(" ", "_"):
            _consider(name)


def _consider(name: str) -> None:
    try:
        with open(f"{_FOLDER}/armed/{name}") as source:  # noqa: PTH123 — pathlib is imported later, if at all
            armed = json.load(source)
    except (FileNotFoundError, ValueError):  # another process was first
        return
    job, attempt = _job_and_attempt()
    asked = (armed["process"], armed["job"], armed["attempt"])
    if any(wanted not in (None, mine) for wanted, mine in zip(asked, (_PROCESS, job, attempt), strict=True)):
        return
    _seen[name] = _seen.get(name, 0) + 1
    if _seen[name] >= armed["nth"] and _claimed(name, armed):
        _ACTIONS[armed["action"]](name, armed)


def _claimed(name: str, armed: dict[str, Any]) -> bool:
    fired = {"pid": _getpid(), "at": time.time(), "monotonic": time.monotonic(), **armed}
    # Of a thread of its own: two of one process may come to their moment at once.
    note = f"{_FOLDER}/fired/.{name}-{_getpid()}-{get_ident()}"
    with open(note, "w") as target:  # noqa: PTH123
        json.dump(fired, target)
    try:
        if not armed["repeat"]:
            os.unlink(f"{_FOLDER}/armed/{name}")  # noqa: PTH108 — whoever removes it has it
    except FileNotFoundError:
        os.unlink(note)  # noqa: PTH108
        return False
    _rename(note, f"{_FOLDER}/fired/{name}")
    return True


def _job_and_attempt() -> tuple[str | None, int | None]:
    """Which attempt this process trains, from its command line; (None, None) in every other process."""
    words = sys.orig_argv
    if "workers.training.run" not in words:
        return None, None
    at = words.index("workers.training.run")
    return words[at + 1], int(words[at + 2])


def _kill(_name: str, _armed: dict[str, Any]) -> None:
    os.kill(_getpid(), signal.SIGKILL)


def _pause(name: str, armed: dict[str, Any]) -> None:
    """Wait until the driver lets go, or half a minute: it may have been killed."""
    deadline = time.monotonic() + armed.get("seconds", 30.0)
    while not os.path.exists(f"{_FOLDER}/released/{name}") and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.01)


def _sleep(_name: str, armed: dict[str, Any]) -> None:
    time.sleep(armed["seconds"])


def _raise(_name: str, armed: dict[str, Any]) -> None:
    raise OSError(armed["errno"], os.strerror(armed["errno"]))


def _lose(_name: str, armed: dict[str, Any]) -> None:
    """What a disk does that fails as bytes are forced onto it: they are gone, and it says so once."""
    with suppress(IsADirectoryError), open(_syncing_path, "r+b") as target:  # noqa: PTH123
        size = target.seek(0, os.SEEK_END)
        target.truncate(size // 2)
        target.truncate(size)
    _raise(_name, armed)


def _allocate(_name: str, armed: dict[str, Any]) -> None:
    """Fill memory as a batch that is too large would: MemoryError, or the kernel's killer, ends it."""
    held = []
    for _ in range(armed["mebibytes"]):
        held.append(b"\x01" * 2**20)
        time.sleep(0)


_ACTIONS = {"kill": _kill, "lose": _lose, "pause": _pause, "sleep": _sleep, "raise": _raise, "allocate": _allocate}


# --- the moments ---


def _renaming(original: Any) -> Any:
    def rename(source: Any, target: Any, **named: Any) -> None:
        kind = _kind_of(os.fspath(target))
        if kind:
            reached(f"before {kind} rename")
        original(source, target, **named)
        if kind:
            reached(f"after {kind} rename")

    return rename


def _syncing(descriptor: Any) -> None:
    global _syncing_path
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    path = _syncing_path = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    reached("fsync")
    if "/unfinished/checkpoint-" in path:
        reached("writing checkpoint")
    elif "/unfinished/" in path or "/artifacts/models/" in path:  # in its own place only where a guard is off
        reached("writing artifact")
        if path.endswith("/model.safetensors"):
            reached("writing weights")
    _fsync(descriptor)


def _kind_of(path: Any) -> str | None:
    folders = {"checkpoints": "checkpoint", "models": "model", "files": "file", "parts": "part"}
    words = str(path).split("/artifacts/", 1)
    return folders.get(words[1].partition("/")[0]) if len(words) == 2 else None


def _in_steps(module: ModuleType) -> None:
    def take_step(original: Any, trainer: Any, *arguments: Any, **named: Any) -> Any:
        if _STEP_SECONDS:
            time.sleep(_STEP_SECONDS)
        reached("before step")
        report = original(trainer, *arguments, **named)
        reached("after step")
        return report

    def clip(original: Any, *arguments: Any, **named: Any) -> Any:
        reached("mid step")
        return original(*arguments, **named)

    wrap(module.Trainer, "_take_step", take_step)
    wrap(module.Trainer, "_clip_gradients", clip)


def _with_news_at_once(module: ModuleType) -> None:
    # A training here is over in seconds; who waits for a step of it has to hear of it before. A worker of the version
    # before may have no such names.
    for name in ("_WRITE_EVERY_SECONDS", "_RAREST_SECONDS"):
        if hasattr(module, name):
            setattr(module, name, _NEWS_EVERY_SECONDS)


def _around_commits(module: ModuleType) -> None:
    def commit(original: Any, connection: Any) -> None:
        reached("before commit")
        original(connection)
        reached("after commit")

    wrap(module.Connection, "commit", commit)


def _before_enqueueing(module: ModuleType) -> None:
    def dispatch(original: Any, *arguments: Any, **named: Any) -> Any:
        reached("before enqueue")
        return original(*arguments, **named)

    wrap(module, "dispatch", dispatch)
