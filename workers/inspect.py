"""A report on a file before anything is trained; needs no server.

Run as `python -m workers.inspect` by `likeness inspect`, which has the same options.

Exit codes: 0 the file can be trained on, 1 it can't, 2 the question can't be answered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, cast

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from api_schemas.defaults import MODEL
from api_schemas.files import DataFormat
from api_schemas.inputs import wrong_file
from api_schemas.reports import Estimate, Report
from encoders import registry
from encoders.errors import EncoderError, UnknownModelError
from storage.settings import StorageSettings
from workers.data.formats import ReadOptions
from workers.data.inspection import Inspection, inspect, max_seq_length_of, tokens_of
from workers.data.page import print_report
from workers.data.plan import Setting, batch_size_asked
from workers.data.report import with_estimate
from workers.training_environment import training_environment

USABLE, NOT_USABLE, NO_ANSWER = 0, 1, 2

_PROBE_SECONDS = 180
#: Smaller files are read before a bar is seen.
_BAR_FROM_BYTES = 16 * 1024 * 1024


class NoAnswerError(Exception):
    """The question can't be answered; the message says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    """Inspect a file and print what was found. Returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        report = _report(asked)
    except NoAnswerError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {_unmarked(str(error))}", highlight=False, soft_wrap=True)
        return NO_ANSWER
    if asked.json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_report(Console(highlight=False), asked.file.name, report)
    return USABLE if report.verdict.usable else NOT_USABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="likeness inspect")
    parser.add_argument("file", type=Path)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--format")
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-probe", action="store_true")
    return parser


def _report(asked: argparse.Namespace) -> Report:
    """Raises NoAnswerError."""
    options = _options(asked.format, asked.column)
    texts = _texts(asked)
    files = [file for file in (asked.file, asked.evaluation, *(texts or ())) if file is not None]
    for file in files:
        _check(file)
    try:
        models = StorageSettings().base_models_dir
        setting = Setting(asked.model, max_seq_length_of(asked.model, models), batch_size_asked(asked.batch_size))
        measure = tokens_of(asked.model, models)
        with _bar(files) as progress:
            found = inspect(
                asked.file,
                setting,
                filename=asked.file.name,
                options=options,
                measure=measure,
                evaluation=asked.evaluation,
                texts=texts,
                progress=progress,
            )
    except UnknownModelError as error:
        raise NoAnswerError(str(error)) from error
    except ValidationError as error:
        raise NoAnswerError(f"{error.errors()[0]['loc'][-1]}: {error.errors()[0]['msg']}.") from error
    except OSError as error:
        raise NoAnswerError(f"{error.strerror or error}: {error.filename or asked.file}") from error
    data_format = found.report.format
    if setting.max_seq_length is None and data_format is not None:
        wrong = wrong_file(asked.model, "vectors", data_format)
        if wrong is not None:
            raise NoAnswerError(wrong)
    if asked.no_probe:
        return with_estimate(found.report, "--no-probe was given.")
    return with_estimate(found.report, _estimate(found, asked.model, models))


def _texts(asked: argparse.Namespace) -> tuple[Path, Path] | None:
    """The corpus and the queries that a relevance file names texts of. Raises NoAnswerError."""
    if asked.corpus is None and asked.queries is None:
        return None
    if asked.corpus is None or asked.queries is None:
        raise NoAnswerError("--corpus and --queries go together: name both or neither.")
    if asked.format is not None or asked.column:
        raise NoAnswerError(
            "--format and --column are not for relevance files: leave them out, or --corpus and --queries."
        )
    return asked.corpus, asked.queries


def _options(told: str | None, columns: Sequence[str]) -> ReadOptions:
    """Raises NoAnswerError."""
    roles: dict[str, str] = {}
    for column in columns:
        role, equals, name = column.partition("=")
        if not (role and equals and name):
            raise NoAnswerError(f"--column {column!r} must be ROLE=NAME, such as anchor=title.")
        if role in roles:
            raise NoAnswerError(f"--column names {role!r} twice.")
        roles[role] = name
    try:
        return ReadOptions(format=cast(DataFormat | None, told), columns=roles)
    except ValueError as error:
        raise NoAnswerError(f"--{error}" if str(error).startswith("format") else str(error)) from error


def _check(file: Path) -> None:
    """Raise NoAnswerError unless it is a file that can be read. A pipe can't: it is looked at more than once."""
    if not file.exists():
        raise NoAnswerError(f"There is no file {str(file)!r}.")
    if file.is_dir():
        raise NoAnswerError(f"{str(file)!r} is a directory. Name a file of rows.")
    if not file.is_file():
        raise NoAnswerError(f"{str(file)!r} is no regular file. Save what it gives, and name that file.")
    if not os.access(file, os.R_OK):
        raise NoAnswerError(f"{str(file)!r} can't be read: permission denied.")


@contextmanager
def _bar(files: Sequence[Path]) -> Iterator[Any]:
    """What to tell how many bytes of which file have been read; shown for large files, on a terminal only."""
    sizes = {file: file.stat().st_size for file in files}
    console = Console(stderr=True)
    if not console.is_terminal or sum(sizes.values()) < _BAR_FROM_BYTES:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {file: progress.add_task(file.name, total=size) for file, size in sizes.items()}
        yield lambda file, position: progress.update(tasks[file], completed=position)


def _estimate(found: Inspection, model: str, base_models_dir: Path | None) -> Estimate | str:
    """Measured in a process of its own, or why it can't be measured."""
    plan, examples = found.report.training, found.profile.examples
    if plan is None or not found.report.verdict.usable:
        return "There is nothing to train."
    if find_spec("torch") is None:
        return "PyTorch is not installed here."
    if found.report.vectors is not None:
        asked: dict[str, Any] = {"dimension": found.report.vectors.dimension}
    else:
        try:
            folder = registry.locate(model, base_models_dir)
        except EncoderError as error:
            return str(error)
        asked = {"folder": str(folder), "texts": [text for row in examples for text in row]}
    measured = _probe({**asked, "texts_per_step": plan.texts_per_step})
    if isinstance(measured, str):
        return measured
    return Estimate(
        device=measured["device"],
        seconds_per_step=measured["seconds"],
        seconds=measured["seconds"] * plan.steps,
        peak_bytes=measured["peak_bytes"],
        measured_rows=max(1, round(plan.batch_size * measured["texts"] / plan.texts_per_step)),
        measured_steps=measured["steps"],
    )


def _probe(asked: dict[str, Any]) -> dict[str, Any] | str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.training.probe"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=training_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"A few steps took longer than {_PROBE_SECONDS} seconds here."
    if done.returncode < 0:
        return f"The measured steps were killed by signal {-done.returncode}, most likely for lack of memory."
    if done.returncode:
        return f"The measured steps failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _unmarked(text: str) -> str:
    """For rich, which reads brackets as markup."""
    return text.replace("[", r"\[")


def _run() -> NoReturn:
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _run()
