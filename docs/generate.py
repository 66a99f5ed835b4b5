"""Writes the documentation's tables from the code, between `<!-- generated: NAME -->` and `<!-- end: NAME -->`.

`make docs` (or `python -m docs.generate`) rewrites them; a test fails while one differs.
"""

import inspect
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from api_schemas import errors
from api_schemas.files import RowError
from docs import inspections
from service.settings import ServiceSettings
from workers.data.validation import validate

ROOT = Path(__file__).parent.parent

#: What a file of training rows may look like, and shouldn't: the table of docs/data.md shows what each is told.
REFUSED: Sequence[tuple[str, str]] = (
    ("Nothing", ""),
    ("A field is missing", '{"anchor": "a question", "text": "its answer"}'),
    ("A field is misspelt", '{"anchor": "a question", "postive": "its answer"}'),
    ("Rows for a chat model", '{"messages": [{"role": "user", "content": "hello"}]}'),
    ("A text is empty", '{"anchor": "a question", "positive": " "}'),
    ("A number where a text belongs", '{"anchor": "a question", "positive": 7}'),
    ("A label beside the pair", '{"sentence1": "a text", "sentence2": "another", "label": 1}'),
    ("A score that is no number", '{"sentence1": "a text", "sentence2": "another", "score": true}'),
    (
        "Two formats in one row",
        '{"anchor": "a question", "positive": "its answer", "text": "a message", "label": "its class"}',
    ),
    ("Vectors of two sizes", '{"anchor_vector": [0.1, 0.2], "positive_vector": [0.1, 0.2, 0.3]}'),
    ("A line that isn't JSON", '{"anchor": "a question", "positive": "its answer"'),
    ("A table without a header", "a question,its answer"),
    ("A cell that should be quoted", "anchor,positive\nhello, you,its answer"),
    ("A key twice", '{"anchor": "a question", "anchor": "again", "positive": "its answer"}'),
    ("NaN", '{"text": "a message", "label": NaN}'),
    (
        "Both formats in one file",
        '{"anchor": "a question", "positive": "its answer"}\n{"text": "a message", "label": "spam"}',
    ),
    (
        "The same pair again and again",
        '{"anchor": "a question", "positive": "its answer"}\n{"anchor": "a question", "positive": "its answer"}',
    ),
    ("One label for all", '{"text": "a message", "label": "spam"}\n{"text": "another", "label": "spam"}'),
    ("One score for all", '{"sentence1": "a text", "sentence2": "another", "score": 1}'),
    ("A label for each", '{"text": "a message", "label": "spam"}\n{"text": "another", "label": "ham"}'),
)


def settings_table() -> str:
    """Every environment variable, its default and what it does."""
    rows = [
        (f"`{_variable(name, field)}`", _default(field), field.description or "")
        for name, field in ServiceSettings.model_fields.items()
    ]
    return _table(("Variable", "Default", "What it does"), rows)


def errors_table() -> str:
    """Every error code under the heading that the code gives it, in the code's order."""
    return "\n\n".join(
        f"## {heading}\n\n{_table(('Code', 'Status', 'Type', 'Meaning'), map(_error_row, codes))}"
        for heading, codes in _error_sections()
    )


def refusals_table() -> str:
    """What validation says of each file of REFUSED."""
    rows = []
    for what, content in REFUSED:
        [error, *_] = _validated(content)
        shown = "<br>".join(f"`{line}`" for line in content.splitlines())
        rows.append((f"{what}<br>{shown}" if shown else what, f"`{error.code}`", error.message))
    return _table(("In the file", "Code", "What it is told"), rows)


def bad_files_table() -> str:
    """What `likeness inspect` says of the bad files of docs/inspections.py."""
    return _table(("The file", "Command", "What it says"), inspections.bad_files())


#: (page, name of the block) → what belongs there
BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "settings"): settings_table,
    ("docs/errors.md", "errors"): errors_table,
    ("docs/data.md", "refusals"): refusals_table,
    ("docs/data.md", "bad files"): bad_files_table,
    ("docs/data.md", "good files"): inspections.good_files,
}


def pages() -> dict[Path, str]:
    """Every page that has generated tables, as it should read."""
    texts: dict[Path, str] = {}
    for (page, name), generate in BLOCKS.items():
        path = ROOT / page
        texts[path] = _filled(texts.get(path) or path.read_text(), name, generate())
    return texts


def _filled(page: str, name: str, content: str) -> str:
    start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"a page lacks its markers {start} and {end}")
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


def _variable(name: str, field: FieldInfo) -> str:
    prefix = ServiceSettings.model_config.get("env_prefix", "")
    return str(field.validation_alias or f"{prefix}{name}".upper())


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return "not set" if default is None else f"`{default}`"


def _error_sections() -> Iterator[tuple[str, list[str]]]:
    """The comments between the codes of ERROR_CODES, each with the codes below it."""
    source = inspect.getsource(errors)
    table = source[source.index("ERROR_CODES: ") : source.index("\n}\n")]
    for section in table.split("\n    # ")[1:]:
        yield section.partition("\n")[0], re.findall(r'^    "(\w+)":', section, flags=re.MULTILINE)


def _error_row(code: str) -> tuple[str, str, str, str]:
    kind = errors.ERROR_CODES[code]
    return f"`{code}`", str(kind.status), f"`{kind.type}`", kind.meaning


def _validated(content: str) -> list[RowError]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_text(content)
        return validate(path).errors


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_line(cells) for cells in (header, ["---"] * len(header), *rows))


def _line(cells: Sequence[str]) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
