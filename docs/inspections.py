"""What `likeness inspect` says of ten bad files and three good ones, for docs/data.md."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

from rich.console import Console

from api_schemas.defaults import MODEL
from api_schemas.reports import Report
from workers.data.inspection import inspect, tokens_of
from workers.data.page import print_report
from workers.data.plan import Setting
from workers.data.report import with_estimate

WIDTH = 100
_THINGS = ("parcel", "invoice", "password", "refund", "address", "voucher", "contract", "delivery date")
_ASKED = ("Where do I find my {}?", "My {} is wrong", "How do I change the {}?", "The {} never arrived", "Cancel my {}")
_ANSWERED = (
    "Open your account and choose {}; the latest is on top.",
    "Tell us what is wrong with the {}, and we correct it within a day.",
    "Under settings, {} can be changed until the order is packed.",
    "If the {} has not come after five days, ask for it again with one click.",
    "An order can be cancelled, with its {}, as long as it has not left us.",
)


def _pairs(start: int = 0) -> list[dict[str, str]]:
    """40 questions with their answers, without the first `start` of them."""
    rows = [
        {"anchor": asked.format(thing), "positive": answered.format(thing)}
        for thing in _THINGS
        for asked, answered in zip(_ASKED, _ANSWERED, strict=True)
    ]
    return rows[start:]


def _labelled(**counts: int) -> list[dict[str, str]]:
    return [{"text": f"{label} {n}", "label": label} for label, count in counts.items() for n in range(count)]


def _lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table(rows: Sequence[Mapping[str, str]], delimiter: str) -> bytes:
    return "".join(delimiter.join(cells) + "\n" for cells in [list(rows[0]), *(row.values() for row in rows)]).encode()


def _spreadsheet() -> bytes:
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        archive.writestr(ZipInfo("xl/worksheets/sheet1.xml"), "<worksheet/>")
    return content.getvalue()


class Case(NamedTuple):
    """A file, and perhaps one to evaluate on."""

    what: str
    name: str
    content: bytes
    evaluation: bytes | None = None


BAD: Sequence[Case] = (
    Case("Columns of other names", "export.csv", _table([{"title": "My parcel", "body": "Track it"}] * 9, ",")),
    Case(
        "Two empty texts among good ones",
        "pairs.jsonl",
        _lines([*_pairs(), {"anchor": "Hello?", "positive": ""}, {"anchor": " ", "positive": "Hello."}]),
    ),
    Case("A spreadsheet named .csv", "pairs.csv", _spreadsheet()),
    Case(
        "Scored pairs, of which some are unlike",
        "sts.jsonl",
        _lines([{"sentence1": "A cat sits.", "sentence2": f"{n} dogs run.", "score": n / 9} for n in range(9)]),
    ),
    Case(
        "One column twice",
        "same.jsonl",
        _lines([{"anchor": row["anchor"], "positive": row["anchor"]} for row in _pairs()]),
    ),
    Case("One label only", "spam.jsonl", _lines(_labelled(spam=40))),
    Case("An identifier in place of a label", "ids.jsonl", _lines(_labelled(**{f"id-{n}": 1 for n in range(40)}))),
    Case("Hardly a second label", "rare.jsonl", _lines(_labelled(ham=2000, spam=12))),
    Case(
        "Some texts under two labels",
        "labels.jsonl",
        _lines([*_labelled(ham=20, spam=20), *({**row, "label": "spam"} for row in _labelled(ham=4))]),
    ),
    Case(
        "Evaluated on what is trained on",
        "pairs.jsonl",
        _lines(_pairs()),
        _lines([*_pairs(start=15), {"anchor": "New?", "positive": "New."}]),
    ),
)

GOOD: Sequence[Case] = (
    Case(
        "Pairs as JSON Lines, two of them twice, one of them long",
        "pairs.jsonl",
        _lines([*_pairs(), *_pairs()[:2], {"anchor": "What do I sign?", "positive": "The terms are these. " * 80}]),
    ),
    Case(
        "Labelled texts as CSV",
        "tickets.csv",
        _table(
            [
                {"text": asked.format(thing), "label": thing}
                for n, thing in enumerate(_THINGS)
                for asked in _ASKED[: 2 + n % 4]
            ],
            ",",
        ),
    ),
    Case(
        "Pairs with hard negatives as TSV",
        "hard.tsv",
        _table([{**row, "negative": f"For firms: {row['positive']}"} for row in _pairs()], "\t"),
    ),
)


def bad_files() -> list[tuple[str, str, str]]:
    """What a file is, the command, and what it says: why not, or else what is worth changing."""
    rows = []
    for case in BAD:
        report = _inspected(case)
        said = report.verdict.reasons or report.warnings
        mark = "!" if report.verdict.usable else "✗"
        lines = [f"{mark} {each.message}" for each in said]
        rows.append((case.what, f"`{_command(case)}`", "<br>".join(lines)))
    return rows


def good_files() -> str:
    """The pages of good files, each under the command that prints it."""
    return "\n\n".join(
        f"{case.what}:\n\n```text\n$ {_command(case, ' --no-probe')}\n{_page(case)}\n```" for case in GOOD
    )


def _command(case: Case, option: str = "") -> str:
    against = " --evaluation held-out.jsonl" if case.evaluation else ""
    return f"likeness inspect {case.name}{against}{option}"


def _page(case: Case) -> str:
    printed = StringIO()
    console = Console(file=printed, width=WIDTH, highlight=False, color_system=None)
    # What is measured differs from machine to machine.
    print_report(console, case.name, with_estimate(_inspected(case), "--no-probe was given."))
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())


def _inspected(case: Case) -> Report:
    measure = tokens_of(MODEL, None)
    if isinstance(measure, str):
        raise RuntimeError(measure)
    with tempfile.TemporaryDirectory() as directory:
        path, evaluation = Path(directory) / case.name, Path(directory) / "held-out.jsonl"
        path.write_bytes(case.content)
        evaluation.write_bytes(case.evaluation or b"")
        setting = Setting(MODEL, measure.max_seq_length)
        compared = evaluation if case.evaluation else None
        return inspect(path, setting, filename=case.name, measure=measure, evaluation=compared).report
