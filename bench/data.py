"""Speed and memory of the way from a file to batches: validation, report, tokenizing, sampling. `--help` tells more."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from rich.console import Console

from bench.data_stages import Measured, StageFailedError, in_own_process
from bench.data_tables import (
    FLOOR_ROWS,
    FULL_FORM,
    JUDGED,
    OTHER_FORMS,
    OTHER_FORMS_SHARE,
    TENTH,
    TENTH_SHARE,
    Drawn,
    Results,
    drawn_table,
    floors,
    floors_table,
    growth_table,
    judged_table,
    padding_table,
    prepared_table,
)
from bench.loss_results import MB
from bench.machine import OtherPrograms, describe, use_physical_cores
from service.demo.progress import Report, progress

Key = TypeVar("Key")

ROWS = 1_000_000
QUICK_ROWS = 20_000
FEWEST_ROWS = 1000
DRAWN = [
    *(Drawn("pairs", batch_size, buckets) for batch_size in (64, 256, 512) for buckets in (False, True)),
    Drawn("labels", 256),
    Drawn("triplets", 256),
]

EPILOG = """
What is measured, each in a process of its own, on short English texts of about 12 tokens (bench/data_pairs.py):
  validation       each row and the file as a whole, from JSONL, CSV, Parquet, JSONL.gz, JSONL.zst
  with the report  the same, with duplicates, balance, token lengths and all else that the service tells of a file
  tokenizing       reading the file, the tokenizer of all-MiniLM-L6-v2, writing the mapped arrays; opening them again
  batches          planning an epoch, drawing it, its tokens, going on from its middle, memory held a row
  padding          what is left of it when texts of like length meet, and what it is without

JSONL has all rows, the other forms a fifth of them; all are scaled to a million. Files are read from the system's
cache. Peak memory is what the kernel counts as resident at most (VmHWM), with the mapped arrays' pages that were
touched; "above imports" leaves out what the process had before it began. Bytes a row are Python's and numpy's own.
CPU time is of all threads: on a machine that others use, it is the surer figure.

examples:
  python -m bench.data                      everything, with a million rows: under ten minutes on two cores
  python -m bench.data --quick              does it work here? 20 000 rows, under a minute
  python -m bench.data --rows 200000        something between
  python -m bench.data --json figures.json  raw figures too: seconds, bytes, rows
  python -m bench.data --strict             fail if a floor is missed
"""


class Stage(NamedTuple):
    """One measurement, the words for it while it runs, and where its figures go."""

    words: str
    name: str
    arguments: tuple[object, ...]
    keep: Callable[[Measured], None]


def main() -> None:
    options = parse(sys.argv[1:])
    about = describe(torch.device("cpu"), use_physical_cores())
    _show("Machine", about)
    results, others = Results(), OtherPrograms()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="likeness-bench-") as folder, progress(console, "stages") as report:
        try:
            _measure(list(_stages(Path(folder), options.rows, results)), report)
        except StageFailedError as error:
            sys.exit(str(error))
    _show("Other programs while this ran", [others.describe()])
    _print_figures(results, options.rows)
    asked = floors(results)
    _show(f"Floors ({_from(options.rows)})", floors_table(asked))
    if options.json is not None:
        raw = {"machine": about, "rows": options.rows, **results.json(), "floors": [one._asdict() for one in asked]}
        options.json.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    if options.strict and not all(floor.reached for floor in asked):
        sys.exit("Not every floor was reached.")


def _measure(stages: list[Stage], report: Report) -> None:
    for number, stage in enumerate(stages):
        report(number, len(stages), stage.words)
        stage.keep(in_own_process(stage.name, *stage.arguments))
    report(len(stages), len(stages), "")


def _stages(folder: Path, rows: int, results: Results) -> Iterator[Stage]:
    """Every measurement, in order: later ones read what earlier ones wrote."""
    shares = {FULL_FORM: 1, TENTH: TENTH_SHARE, **dict.fromkeys(OTHER_FORMS, OTHER_FORMS_SHARE)}
    wanted = [f"{name}={share}" for name, share in shares.items()]
    yield Stage("writing files", "write", (folder, rows, *wanted), _into(results, "files"))
    for name in shares:
        for stage, title in JUDGED.items():
            keep = _under(results.judged, (stage, name))
            yield Stage(f"{title}, {rows // shares[name]:,} rows, {name}", stage, (folder / name,), keep)
    pairs = folder / "pairs"
    yield Stage("tokenizing", "prepare", (folder / FULL_FORM, pairs), _into(results, "prepared"))
    yield Stage("opening again", "reopen", (pairs,), _into(results, "reopened"))
    for kind in ("labels", "triplets"):
        yield Stage(f"writing {kind}", "prepare_words", (kind, folder / kind, rows), lambda _: None)
    for how in DRAWN:
        words = f"batches of {how.batch_size} {how.kind}{', buckets by length' if how.bucket_by_length else ''}"
        arguments = (folder / how.kind, how.batch_size, how.bucket_by_length)
        yield Stage(words, "batches", arguments, _under(results.drawn, how))


def _into(results: Results, name: str) -> Callable[[Measured], None]:
    return lambda measured: setattr(results, name, measured)


def _under(figures: dict[Key, Measured], key: Key) -> Callable[[Measured], None]:
    return lambda measured: figures.__setitem__(key, measured)


def _print_figures(results: Results, rows: int) -> None:
    fifth = rows // OTHER_FORMS_SHARE
    _show("Data", _about_data(results, rows))
    _show(f"Validation ({rows:,} rows as JSONL, {fifth:,} in the other forms, scaled)", judged_table(results))
    _show(f"Tokenizing ({rows:,} pairs)", prepared_table(results))
    _show(f"Batches of an epoch ({rows:,} rows)", drawn_table(results))
    _show(f"Padding of pairs whose two lengths say nothing of each other ({rows:,})", padding_table(results))
    note = ["", "The report sorts about a million inputs at a time: its memory grows up to there, and hardly beyond."]
    heading = f"Memory of validation above the imports ({rows // TENTH_SHARE:,} and {rows:,} rows)"
    _show(heading, growth_table(results) + note)


def _about_data(results: Results, rows: int) -> Iterator[str]:
    tokens, distinct = results.prepared.others["tokens a text"], int(results.prepared.others["distinct"])
    size, prepared = results.files.others[FULL_FORM], results.prepared.others["bytes on disk"]
    yield (
        f"{rows:,} pairs: {size / MB:,.0f} MB as JSONL, {prepared / MB:,.0f} MB prepared; {tokens:.1f} tokens a text "
        f"on average, the two special ones included; {distinct:,} of {2 * rows:,} texts are different."
    )
    yield "Labels and triplets: the same texts, a token for each word."


def _from(rows: int) -> str:
    if rows < FLOOR_ROWS:
        return f"from {FLOOR_ROWS:,} rows on"
    return "as measured" if rows == ROWS else f"times scaled from {rows:,} rows, memory as it was"


def _show(heading: str, lines: Iterable[str]) -> None:
    print("", f"## {heading}", "", *lines, sep="\n", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.data",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--rows", type=_rows, default=ROWS, metavar="N", help=f"rows of the files ({ROWS:,})")
    size.add_argument("--quick", action="store_const", dest="rows", const=QUICK_ROWS, help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the raw figures there")
    parser.add_argument("--strict", action="store_true", help="fail if a floor was not reached, or not measured")
    return parser.parse_args(arguments)


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST_ROWS:
        raise argparse.ArgumentTypeError(f"must be a whole number from {FEWEST_ROWS} on, not {text!r}.")
    return int(text)


if __name__ == "__main__":
    main()
