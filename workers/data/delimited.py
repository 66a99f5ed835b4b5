"""CSV and TSV (RFC 4180 with comma, semicolon or tab): a header row, then one record for each row.

The standard library's parser reads them, line by line as it asks for them. pyarrow's is faster, but reads blocks in
parallel, cannot name the line of a row once a quoted cell holds a line end, and takes any encoding error for the
end of the file. Memory is bounded by the longest row that is allowed, also where a quote is never closed.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from api_schemas.files import MAX_ROW_BYTES
from workers.data.formats import ReadOptions, shown
from workers.data.json_lines import Record, skip_to_line_end, too_long
from workers.data.row import FileRefusedError, RowRefusedError

MAX_COLUMNS = 4096
DELIMITERS = ",;\t"
#: Of a relevance file, which is no row's (see `workers.data.relevance`).
_OF_JUDGEMENTS = ("query-id", "corpus-id")


class Table:
    """A header and the records below it. Raises FileRefusedError if the header can't be read."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        # The parser's own bound is one for the whole process; the bound on rows is stricter, whatever it is.
        csv.field_size_limit(MAX_ROW_BYTES + 1)
        self._lines = _Lines(file)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self._delimiter = delimiter
        self._ended = False
        self.columns = self._header()

    def records(self) -> Iterator[Record]:
        """The records, numbered by the line on which they begin."""
        width = len(self.columns)
        while not self._ended:
            try:
                cells = self._row()
            except RowRefusedError as refusal:
                yield self._lines.first, refusal
                continue
            if cells is None:
                return
            if len(cells) == width:
                yield self._lines.first, dict(zip(self.columns, cells, strict=True))
            elif "".join(cells).strip() or len(cells) > 1:  # else the line is blank
                yield self._lines.first, self._ragged(len(cells))

    def _row(self) -> list[str] | None:
        """The cells of the next row, None at the end. Raises RowRefusedError."""
        self._lines.begin_row()
        try:
            cells = next(self._reader, None)
        except csv.Error as error:
            raise self._malformed(error) from None
        except _UnclosedQuoteError:
            self._ended = True  # What follows may be cells or what was quoted: nobody can tell.
            message = (
                f"holds a quote that is not closed within {MAX_ROW_BYTES} bytes, so that nothing below is read. "
                'Close it; a quote within a quoted cell is written twice ("").'
            )
            raise RowRefusedError("row_invalid_csv", message) from None
        if self._lines.invalid_utf8:
            raise RowRefusedError("invalid_utf8", "is not UTF-8. Save the file as UTF-8.")
        return cells

    def _malformed(self, error: csv.Error) -> RowRefusedError:
        said = str(error)
        if "field larger" in said:
            return too_long()
        if "end of data" in said:
            found = "holds a quote that is never closed, up to the end of the file"
        elif "expected after" in said:
            found = "has something between a closing quote and the end of its cell"
        else:
            message = "has a carriage return outside quotes. Save the file with line ends that are LF or CRLF."
            return RowRefusedError("row_invalid_csv", message)
        message = f'{found}. A cell with quotes is quoted as a whole, and each quote in it is written twice ("").'
        return RowRefusedError("row_invalid_csv", message)

    def _ragged(self, cells: int) -> RowRefusedError:
        delimiter = {"\t": "a tab"}.get(self._delimiter, repr(self._delimiter))
        message = (
            f"has {cells} cells, but the header has {len(self.columns)}. "
            f"Quote the cells that hold {delimiter} or a line end."
        )
        return RowRefusedError("row_ragged", message)

    def _header(self) -> tuple[str, ...]:
        try:
            cells = self._row()
            while cells == []:
                cells = self._row()
        except RowRefusedError as refusal:
            raise FileRefusedError(refusal.code, f"The header {refusal.message}") from None
        names = tuple(name.strip() for name in cells or [])
        _refuse_columns(names)
        return names


def _refuse_columns(names: tuple[str, ...]) -> None:
    if len(names) > MAX_COLUMNS:
        message = f"The header names {len(names)} columns; at most {MAX_COLUMNS} are read. Keep those you train on."
        raise FileRefusedError("row_ragged", message)
    # Columns without a name are no mistake: tables are often written with their row numbers.
    name, times = Counter(filter(None, names)).most_common(1)[0] if any(names) else ("", 0)
    if times > 1:
        raise FileRefusedError("duplicate_key", f"The header names {shown(name)} twice. Keep one of them.")


class Guess(NamedTuple):
    """What a first line looks like, taken for a header."""

    delimiter: str
    known: bool  # whether it names a column that is known or told
    cells: int


def guess(line: str, options: ReadOptions) -> Guess:
    """Read a first line with the delimiter that gives most names that are known or told, and then most cells."""
    wanted = options.understood.union(_OF_JUDGEMENTS)

    def merit(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return sum(cell.strip() in wanted for cell in cells), len(cells)

    best = max(DELIMITERS, key=merit)
    known, cells = merit(best)
    return Guess(best, known > 0, cells)


class _UnclosedQuoteError(Exception):
    """A row of several lines has become longer than a row may be."""


class _Lines:
    """The lines of a file for a parser, which asks for more of them within a quoted cell."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._length = 0
        self.first = 1  # number of the row's first line
        self.invalid_utf8 = False

    def begin_row(self) -> None:
        """What is read from here on belongs to another row."""
        self._length = 0
        self.first = self._number + 1
        self.invalid_utf8 = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """Raises RowRefusedError for a row of one line that is too long, _UnclosedQuoteError for one of several."""
        line = self._file.readline(MAX_ROW_BYTES + 2)  # 2: a line end of the longest kind
        if not line:
            raise StopIteration
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        continued = self._length > 0
        self._length += len(line)
        if self._length > MAX_ROW_BYTES + 2 or len(line.rstrip(b"\r\n")) > MAX_ROW_BYTES:
            if continued:
                raise _UnclosedQuoteError
            if not line.endswith(b"\n"):
                skip_to_line_end(self._file)
            raise too_long()
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            # Decoded all the same, so that the parser finds the row's end.
            self.invalid_utf8 = True
            return line.decode("utf-8", "replace")
