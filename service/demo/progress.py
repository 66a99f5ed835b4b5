"""Progress of something long: a bar on a terminal, a line every tenth in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

#: Called with how much is done, of how much, and a few words on how it goes.
Report = Callable[[int, int, str], None]


@contextmanager
def progress(console: Console, unit: str) -> Iterator[Report]:
    """Show progress while the block runs. What the console prints meanwhile appears above the bar."""
    if not console.is_terminal:
        yield _lines(console, unit)
        return
    columns = (
        TextColumn("   {task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(unit, total=None, detail="")

        def report(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total, detail=detail)

        yield report


def _lines(console: Console, unit: str) -> Report:
    tenth = -1

    def report(done: int, total: int, detail: str) -> None:
        nonlocal tenth
        reached = 10 * done // max(total, 1)
        if reached != tenth:  # also when a restarted job falls back
            tenth = reached
            console.print(Text(f"   {unit} {done}/{total} ({10 * reached} %)  {detail}".rstrip()), soft_wrap=True)

    return report


def clock(seconds: float) -> str:
    """`75.2` → `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
