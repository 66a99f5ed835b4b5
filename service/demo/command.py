"""`likeness demo`: a running installation, the demonstration on it, and a clean end."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from service.demo.failures import DemoError
from service.demo.report import Address
from service.demo.run import run_demo
from service.settings import ServiceSettings
from service.up import api_url, is_ready
from storage.processes import start_child, stop_child

_START_SECONDS = 180.0
# Longer than `likeness up` gives its own children.
_STOP_SECONDS = 60.0


class _Running(NamedTuple):
    """Where an installation answers, and the key it wrote."""

    api_url: str
    api_key: str
    started_here: bool = False


def demonstrate(
    settings: ServiceSettings, *, console: Console, max_steps: int | None, search_trials: int | None = None
) -> bool:
    """Run the demonstration on the data directory's installation, started for it if none runs. True if it went well."""
    # SIGTERM ends it as Ctrl-C does: everything that was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workdir = settings.data_dir / "demo"
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with _installation(settings, console) as running:
            return run_demo(
                f"{running.api_url}/v1",
                running.api_key,
                console=console,
                workdir=workdir,
                max_steps=max_steps,
                search_trials=search_trials,
                later=_later(settings, running),
            )
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that the demo started is stopped.")
        raise SystemExit(128 + signal.SIGINT) from None
    except DemoError as error:
        console.print(f"[bold red]Error:[/] {error.message} {error.remedy}", highlight=False)
    return False


def _later(settings: ServiceSettings, running: _Running) -> Address:
    """Where the reader finds the model once the demo is over: what it started itself is stopped by then."""
    key = f"$(cat {settings.data_dir / 'admin.key'})"
    if not running.started_here:
        return Address(f"{running.api_url}/v1", key, python=_program("python"))
    start = f"{_program('likeness')} up --data-dir {settings.data_dir}"
    return Address(f"{api_url(settings)}/v1", key, start=start, python=_program("python"))


def _program(name: str) -> str:
    """How a reader in this directory calls a program of this Python's environment."""
    path = Path(sys.executable).parent / name
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextmanager
def _installation(settings: ServiceSettings, console: Console) -> Iterator[_Running]:
    running = _read_running(settings)
    if running is not None and is_ready(running.api_url):
        console.print(f"Using the `likeness up` that runs at {running.api_url}.\n")
        yield running
        return
    log = settings.data_dir / "demo" / "up.log"
    with log.open("wb") as output:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "service",
            "up",
            "--data-dir",
            settings.data_dir,
            "--port",
            "0",
        ]
        process = start_child(command, output=output)
    try:
        with console.status("Starting PostgreSQL, Valkey, the API and two workers (`likeness up`) …"):
            running = _await_running(settings, process.poll, log)
        console.print(f"`likeness up` is ready at {running.api_url}: PostgreSQL, Valkey, the API and two workers.\n")
        yield running._replace(started_here=True)
    finally:
        # A second Ctrl-C must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        console.print("Stopping what was started …")
        stop_child(process, sig=signal.SIGTERM, grace_seconds=_STOP_SECONDS)


def _await_running(settings: ServiceSettings, exit_code: Callable[[], int | None], log: Path) -> _Running:
    deadline = time.monotonic() + _START_SECONDS
    while exit_code() is None and time.monotonic() < deadline:
        running = _read_running(settings)
        if running is not None and is_ready(running.api_url):
            return running
        time.sleep(0.2)
    raise DemoError(f"`likeness up` did not get ready. It said:\n{log.read_text().strip()}", f"Its log is {log}.")


def _read_running(settings: ServiceSettings) -> _Running | None:
    try:
        api_url = json.loads(settings.running_file.read_text())["api_url"]
        return _Running(api_url, (settings.data_dir / "admin.key").read_text().strip())
    except (FileNotFoundError, ValueError):
        return None
