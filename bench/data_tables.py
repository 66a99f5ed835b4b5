"""What the data benchmark measured, as tables, and what is asked of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from bench.data_stages import Measured
from bench.loss_floors import Floor
from bench.loss_results import MB, markdown

#: The form that is measured with all rows; the others with every OTHER_FORMS_SHAREth.
FULL_FORM = "pairs.jsonl"
OTHER_FORMS = ["pairs.csv", "pairs.parquet", "pairs.jsonl.gz", "pairs.jsonl.zst"]
OTHER_FORMS_SHARE = 5
TENTH = "tenth.jsonl"
TENTH_SHARE = 10

#: Of fewer rows, the first steps of a process decide the times, and too few batches make up a length bucket.
FLOOR_ROWS = 100_000
FEW_BYTES = 1000 * MB
_VALIDATED, _TOKENIZED, _PADDING = 60, 180, 0.10
#: Stage → what it is to a reader.
JUDGED = {"validate": "validation", "inspect": "validation with the report"}


class Drawn(NamedTuple):
    """One way of drawing batches."""

    kind: str
    batch_size: int
    bucket_by_length: bool = False


@dataclass
class Results:
    """All figures of a run."""

    files: Measured = field(default_factory=Measured)
    judged: dict[tuple[str, str], Measured] = field(default_factory=dict)  # by stage and file
    prepared: Measured = field(default_factory=Measured)
    reopened: Measured = field(default_factory=Measured)
    drawn: dict[Drawn, Measured] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Everything, in seconds, bytes and rows; `others` of drawn batches in seconds and bytes a row."""
        return {
            "files": asdict(self.files),
            "judged": [{"stage": stage, "file": name, **asdict(one)} for (stage, name), one in self.judged.items()],
            "prepared": asdict(self.prepared),
            "reopened": asdict(self.reopened),
            "drawn": [{**how._asdict(), **asdict(one)} for how, one in self.drawn.items()],
        }


def judged_table(results: Results) -> list[str]:
    """A row for each file and stage."""
    rows = [
        [name.partition(".")[2], JUDGED[stage], *_rates(one)]
        for (stage, name), one in results.judged.items()
        if name != TENTH
    ]
    return markdown(["form", "work", *_RATES], rows)


def prepared_table(results: Results) -> list[str]:
    """Tokenizing, and opening what came of it."""
    rows = [
        ["read, tokenized and written", *_rates(results.prepared)],
        ["opened again, checksums compared", *_rates(results.reopened)],
    ]
    return markdown(["work", *_RATES], rows)


def drawn_table(results: Results) -> list[str]:
    """A row for each way of drawing batches."""
    rows = [
        [
            how.kind,
            str(how.batch_size),
            "yes" if how.bucket_by_length else "no",
            f"{one.others['draw'] * 1e6:.2f} µs",
            f"{one.others['tokens'] * 1e6:.2f} µs",
            f"{one.seconds:.3g} s",
            f"{one.others['resume']:.3g} s",
            f"{one.others['held']:.1f}",
            f"{one.others['held at most']:.1f}",
        ]
        for how, one in results.drawn.items()
    ]
    headings = ["rows", "batch size", "buckets", "draw a row", "its tokens", "plan", "resume at the middle"]
    return markdown([*headings, "bytes a row", "at most"], rows)


def padding_table(results: Results) -> list[str]:
    """Of all tokens of the batches of an epoch of pairs, how many are padding."""
    sizes = sorted({how.batch_size for how in results.drawn if how.bucket_by_length})
    rows = [[str(size), *(_percent(_padding(results, size, buckets)) for buckets in (False, True))] for size in sizes]
    return markdown(["batch size", "no buckets", "buckets by length"], rows)


def growth_table(results: Results) -> list[str]:
    """Memory of validation with a tenth of the rows and with all."""
    rows = []
    for stage, title in JUDGED.items():
        tenth, whole = (results.judged[stage, name].bytes_above_imports for name in (TENTH, FULL_FORM))
        rows.append([title, _megabytes(tenth), _megabytes(whole), f"{whole / max(tenth, 1):.2f}×"])
    return markdown(["work", "a tenth of the rows", "all rows", "ratio"], rows)


def floors(results: Results) -> list[Floor]:
    """All of them, times scaled to a million rows, memory of the process as a whole."""
    found: list[Floor] = []
    for stage, title in JUDGED.items():
        found += _of_a_million(title, results.judged[stage, FULL_FORM], _VALIDATED)
    found += _of_a_million("tokenizing and writing", results.prepared, _TOKENIZED)
    for how in results.drawn:
        if how.bucket_by_length:
            share = _padding(results, how.batch_size, buckets=True)
            where = f"padding with buckets, batch size {how.batch_size}"
            found.append(Floor(where, f"< {_percent(_PADDING)}", _percent(share), share < _PADDING))
    if results.files.rows < FLOOR_ROWS:
        return [one._replace(measured="not measured", reached=None) for one in found]
    return found


def floors_table(found: list[Floor]) -> list[str]:
    """A row for each: what, asked, measured, reached or missed."""
    verdicts = {True: "reached", False: "missed", None: ""}
    rows = [[one.where, one.asked, one.measured, verdicts[one.reached]] for one in found]
    return markdown(["a million short pairs", "asked", "measured", "verdict"], rows)


_RATES = ["rows a second", "a million rows", "CPU time of them", "peak above imports", "peak of the process"]


def _rates(one: Measured) -> list[str]:
    return [
        f"{one.rows / one.seconds:,.0f}",
        f"{one.for_a_million(one.seconds):.3g} s",
        f"{one.for_a_million(one.cpu_seconds):.3g} s",
        _megabytes(one.bytes_above_imports),
        _megabytes(one.peak_bytes),
    ]


def _of_a_million(title: str, one: Measured, most_seconds: int) -> list[Floor]:
    seconds = one.for_a_million(one.seconds)
    return [
        Floor(title, f"< {most_seconds} s", f"{seconds:.3g} s", seconds < most_seconds),
        Floor(title, f"< {_megabytes(FEW_BYTES)}", _megabytes(one.peak_bytes), one.peak_bytes < FEW_BYTES),
    ]


def _padding(results: Results, batch_size: int, buckets: bool) -> float:
    return results.drawn[Drawn("pairs", batch_size, buckets)].others["padding"]


def _megabytes(size: float) -> str:
    return f"{size / MB:,.0f} MB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
