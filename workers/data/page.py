"""The report as a page to read in a terminal: the verdict first, then what would be trained and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from api_schemas.amounts import number, percent
from api_schemas.files import FileFormat
from api_schemas.reports import LabelBalance, Overlap, Report, Scores, TokenLengths, TrainingPlan

_BAR = 40
_SHOWN_FIRST = 3
_NAMES: Mapping[FileFormat, str] = {
    "pairs": "pairs",
    "scored_pairs": "scored pairs",
    "triplets": "pairs with hard negatives",
    "labels": "labelled texts",
    "views": "views",
    "texts": "plain texts",
    "vectors": "labelled vectors",
    "vector_pairs": "pairs of vectors",
    "relevance": "relevance judgements",
}


def print_report(console: Console, name: str, report: Report) -> None:
    """Print the page; `name` is the file's."""
    console.print(_title(name, report))
    console.print(_verdict(report))
    if report.training is not None and report.verdict.usable:
        _section(console, "What would be trained", _training(report, report.training))
    if report.warnings:
        _section(console, "Worth changing", _points((each.message for each in report.warnings), "!", "yellow"))
    if report.refused:
        _section(console, "Refused rows", _refused(report))
    if report.rows and report.format != "relevance":
        _section(console, "What is in it", _content(report))
    if report.labels is not None:
        _section(console, "Rows a label", _labels(report.labels))
    if report.token_lengths is not None:
        _section(console, _lengths_title(report.token_lengths), _lengths(report.token_lengths))
    if report.overlap is not None:
        _section(console, "Evaluation", _overlap(report.overlap))


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(Padding(content, (0, 0, 0, 2), expand=False))


def _title(name: str, report: Report) -> Text:
    kind = _NAMES[report.format] if report.format else "no rows that can be used"
    rows = f"{number(report.rows)} rows of " if report.rows else ""
    return Text.assemble((_printable(name), "bold"), f"  {rows}{kind}, {_size(report.bytes)}")


def _verdict(report: Report) -> RenderableType:
    if report.verdict.usable:
        return Text("✓ It can be trained on.", style="bold green")
    words = Text("✗ It can't be trained on.", style="bold red")
    return Group(words, _points((reason.message for reason in report.verdict.reasons), "✗", "red"))


def _points(messages: Iterable[str], mark: str, style: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    for message in messages:
        grid.add_row(Text(mark, style=style), Text(_printable(message)))
    return grid


def _training(report: Report, plan: TrainingPlan) -> Group:
    noun = "vectors" if report.vectors is not None else "texts"
    epochs = "1 epoch" if plan.n_epochs == 1 else f"{plan.n_epochs} epochs"
    lines = [
        f"{_printable(plan.model)}: {epochs} in batches of {plan.batch_size} rows, about {number(plan.steps)} steps.",
        f"Each step encodes {number(plan.texts_per_step)} {noun} and compares {number(plan.anchors_per_step)} of them "
        "with the rest.",
    ]
    estimate = report.estimate
    if estimate is None:
        lines.append(f"Time and memory were not measured. {_printable(report.estimate_missing or '')}".strip())
    else:
        steps = "1 step" if estimate.measured_steps == 1 else f"{estimate.measured_steps} steps"
        lines.append(
            f"About {_duration(estimate.seconds)} and {_size(estimate.peak_bytes)} of memory on {estimate.device}, "
            f"measured on {steps} of {number(estimate.measured_rows)} rows."
        )
    return Group(*map(Text, lines))


def _refused(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    for kind in report.refused:
        code = Text(kind.code if kind.field is None else f"{kind.code} ({_printable(kind.field)})", style="bold")
        table.add_row(Text(f"{number(kind.count)} ×", justify="right"), code)
        for error in kind.first[:_SHOWN_FIRST]:
            table.add_row("", Text(_printable(error.message)))
    return table


def _content(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    duplicates, noun = report.duplicates, "vectors" if report.vectors is not None else "texts"
    table.add_row("rows that repeat an earlier one", number(duplicates.rows))
    repeated = f"{number(duplicates.different_texts)}, {number(duplicates.repeated_texts)} of them in several rows"
    table.add_row(f"different {noun}", repeated)
    if report.conflicts is not None:
        table.add_row(f"{noun} with two labels", number(report.conflicts.count))
    if report.format in ("pairs", "triplets", "vector_pairs"):
        table.add_row("pairs whose anchor is its positive", number(report.same_inputs.count))
    if report.scores is not None:
        table.add_row("scores", _scores(report.scores))
    if report.collisions is not None:
        expected, size = report.collisions.expected, report.collisions.batch_size
        crowd = f"about {expected:.2g} in a batch of {size}; kept apart" if expected else "none"
        table.add_row(f"pairs of rows that share a {noun[:-1]}", crowd)
    if report.scripts:
        shares = ", ".join(f"{each.script} {percent(each.share)}" for each in report.scripts[:_SHOWN_FIRST])
        table.add_row("scripts", shares)
    if report.vectors is not None:
        one = report.vectors
        norms = f"norms from {one.smallest_norm:.3g} to {one.largest_norm:.3g}, median {one.median_norm:.3g}"
        table.add_row("dimension", f"{one.dimension}; {norms}")
    elif report.token_lengths is None:
        table.add_row("tokens", Text(f"not counted. {_printable(report.token_lengths_missing or '')}"))
    return table


def _scores(scores: Scores) -> str:
    if scores.binary:
        return f"two: {scores.smallest:g} and {scores.largest:g}"
    return f"from {scores.smallest:g} to {scores.largest:g}, median {scores.median:g}"


def _labels(balance: LabelBalance) -> Group:
    most = balance.largest.rows
    table = _bars((_printable(each.label), each.rows, most, "") for each in balance.top)
    rest = balance.labels - len(balance.top)
    lines = [f"and {number(rest)} more, down to {number(balance.smallest.rows)}"] if rest else []
    return Group(table, *map(Text, lines))


def _lengths_title(lengths: TokenLengths) -> str:
    of = "all" if lengths.sampled == lengths.texts else f"a sample of {number(lengths.sampled)} of"
    return f"Tokens a text, of {of} {number(lengths.texts)} texts"


def _lengths(lengths: TokenLengths) -> Group:
    most = max(each.texts for each in lengths.histogram)
    table = _bars(
        (
            "more" if each.up_to is None else f"up to {number(each.up_to)}",
            each.texts,
            most,
            "← read this far" if each.up_to == lengths.max_seq_length else "",
        )
        for each in lengths.histogram
        if each.texts or each.up_to == lengths.max_seq_length
    )
    middle = f"median {number(lengths.median)}, 95 % up to {number(lengths.p95)}, longest {number(lengths.longest)}"
    cut = f"{percent(lengths.texts_cut)} of the texts are cut, {percent(lengths.tokens_cut)} of all tokens"
    return Group(table, Text(f"{middle}; {cut}"))


def _overlap(overlap: Overlap) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("its rows", number(overlap.rows))
    table.add_row("rows that stand in the training file", number(overlap.rows_in_training))
    shared = f"{number(overlap.texts_in_training)} of {number(overlap.texts)}"
    table.add_row("texts that stand in the training file", shared)
    return table


def _bars(rows: Iterable[tuple[str, int, int, str]]) -> Table:
    """A name, a count, the largest count, and a remark."""
    table = Table.grid(padding=(0, 1))
    table.add_column(overflow="ellipsis", no_wrap=True, max_width=32)
    table.add_column(justify="right")
    for name, count, most, remark in rows:
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        table.add_row(Text(name), number(count), Text.assemble((bar, "cyan"), " " if remark else "", (remark, "dim")))
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _size(size: int) -> str:
    """Bytes in units of 1000."""
    if size < 1000:
        return f"{size} bytes"
    value, units = float(size), iter(("kB", "MB", "GB", "TB"))
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def _printable(text: str) -> str:
    """Text from a file, without what would move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)
