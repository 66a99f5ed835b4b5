"""From rows to a prepared dataset on disk, in bounded memory: texts are tokenized once, for all epochs and jobs.

Memory holds a few chunks of rows, and the names of labels; everything else is in files from the start.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from api_schemas.files import DataFormat
from encoders.prompts import Prompts
from storage.manifests import sha256
from workers.data.contents import content_ids
from workers.data.prepared import LABEL_NAMES, MANIFEST, VERSION, Prepared, PreparedError
from workers.data.prompted import prompted
from workers.data.row import Row

#: Part of the name of a folder that is being written, or whose writer has crashed.
UNFINISHED = ".unfinished-"
#: A chunk ends with the row that brings it to either of these.
_CHUNK_ITEMS = 4096
_CHUNK_CHARACTERS = 1024 * 1024
#: How many content ids are sorted at a time to count the different ones.
_SORTED_AT_ONCE = 8 * 1024 * 1024


class PreparationStopped(Exception):  # noqa: N818 (a request that was met, not an error)
    """Preparation was asked to stop; nothing is left of it."""

    def __init__(self) -> None:
        super().__init__("The dataset was not prepared to its end: the preparation was asked to stop.")


class NoRowsError(ValueError):
    """There are no rows to prepare."""

    def __init__(self) -> None:
        super().__init__("The file holds no rows.")


class Tokenized(Protocol):
    """A text's ids, (length,) int32, and how many there would be if none were cut."""

    @property
    def ids(self) -> npt.NDArray[np.int32]: ...

    @property
    def untruncated_length(self) -> int: ...


Tokenizer = Callable[[Sequence[str]], Sequence[Tokenized]]


def prepare(
    rows: Iterator[Row],
    folder: Path,
    *,
    tokenizer: Tokenizer,
    limit: int,
    prompts: Prompts | None = None,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Prepared:
    """Write rows, all of one format, as a prepared dataset, and open it.

    limit: tokens of a text that are kept, the special ones included. prompts: what goes before texts, by their place
    in a row; contents are compared without. `progress` is told now and then how many
    rows are done; `should_stop` is asked as often.

    The folder is complete or not there. If somebody else published it meanwhile, theirs is kept if it is whole.

    Raises NoRowsError, PreparationStopped, OSError, and whatever `rows` raises.
    """
    first = next(rows, None)
    if first is None:
        raise NoRowsError
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}{UNFINISHED}{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        with _Writer(temporary, first.format, tokenizer, limit, prompts or Prompts()) as writer:
            for chunk in _chunks(chain([first], rows)):
                if should_stop is not None and should_stop():
                    raise PreparationStopped
                writer.add(chunk)
                if progress is not None:
                    progress(writer.rows)
            writer.finish()
        _write_manifest(temporary, writer)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Prepared.open(folder)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    items = characters = 0
    for row in rows:
        chunk.append(row)
        items += len(row.inputs)
        characters += sum(map(len, row.inputs))
        if items >= _CHUNK_ITEMS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk = []
            items = characters = 0
    if chunk:
        yield chunk


class _Column:
    """An array that grows by its first axis, as a .npy file."""

    def __init__(self, path: Path, dtype: type[np.generic], row_shape: tuple[int, ...] = ()) -> None:
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._rows = 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, values: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(values, dtype=self._dtype)
        if array.shape[1:] != self._row_shape:
            raise ValueError(f"rows of shape {array.shape[1:]} among rows of shape {self._row_shape}")
        self._file.write(array.data)
        self._rows += len(array)

    def close(self) -> None:
        with self._file:
            # The format leaves room in the header for 21 digits of the first axis.
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._row_shape)},
        )


class _Tokens(NamedTuple):
    """A chunk of texts, tokenized: (tokens of all,), (texts,), and how many texts were cut."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    truncated: int


class _Writer:
    """The files of one folder. While a thread tokenizes a chunk, the next one is read and hashed."""

    def __init__(
        self, folder: Path, row_format: DataFormat, tokenizer: Tokenizer, limit: int, prompts: Prompts
    ) -> None:
        self.format = row_format
        self.rows = self.items = self.tokens = self.truncated = 0
        self._folder = folder
        self._tokenizer = tokenizer
        self._limit = limit
        self._prompts = prompts
        self._label_numbers: dict[str, int] = {}
        self._columns: dict[str, _Column] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._pending: Future[_Tokens] | None = None

    def __enter__(self) -> Self:
        self._column("row_starts", np.int64).append([0])
        if self.format not in ("vectors", "vector_pairs"):
            self._column("ids", np.int32)
            self._column("starts", np.int64).append([0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        with ExitStack() as stack:  # closes the rest where the disk refuses one
            for column in self._columns.values():
                stack.callback(column.close)

    def add(self, chunk: list[Row]) -> None:
        inputs = [each for row in chunk for each in row.inputs]
        if "ids" in self._columns:
            self._tokenize_next(cast(list[str], inputs) if not self._prompts.texts else prompted(chunk, self._prompts))
        else:
            width = len(inputs[0]) if self.rows == 0 else 0
            self._column("vectors", np.float32, (width,)).append(inputs)
        ends = self.items + np.cumsum([len(row.inputs) for row in chunk])
        self._column("row_starts", np.int64).append(ends)
        self._column("contents", np.int64).append(content_ids(inputs))
        self._add_labels(chunk)
        self._add_scores(chunk)
        self.rows += len(chunk)
        self.items += len(inputs)

    def finish(self) -> None:
        self._write_tokens()
        (self._folder / LABEL_NAMES).write_text(json.dumps(list(self._label_numbers)), "utf-8")

    def _add_labels(self, chunk: list[Row]) -> None:
        labels = [row.label for row in chunk if row.label is not None]
        if labels:
            numbers = self._label_numbers
            self._column("labels", np.int32).append([numbers.setdefault(label, len(numbers)) for label in labels])

    def _add_scores(self, chunk: list[Row]) -> None:
        scores = [row.score for row in chunk if row.score is not None]
        if scores:
            self._column("scores", np.float64).append(scores)

    def _tokenize_next(self, texts: list[str]) -> None:
        following = self._pool.submit(_tokenize, texts, self._tokenizer, self._limit)
        self._write_tokens()
        self._pending = following

    def _write_tokens(self) -> None:
        if self._pending is None:
            return
        tokens = self._pending.result()
        self._pending = None
        self._column("ids", np.int32).append(tokens.ids)
        self._column("starts", np.int64).append(self.tokens + np.cumsum(tokens.lengths))
        self.tokens += len(tokens.ids)
        self.truncated += tokens.truncated

    def _column(self, name: str, dtype: type[np.generic], row_shape: tuple[int, ...] = ()) -> _Column:
        if name not in self._columns:
            self._columns[name] = _Column(self._folder / f"{name}.npy", dtype, row_shape)
        return self._columns[name]


def _tokenize(texts: list[str], tokenizer: Tokenizer, limit: int) -> _Tokens:
    numbers: dict[str, int] = {}
    for text in texts:
        numbers.setdefault(text, len(numbers))
    # Answers and class names recur; a text of a chunk is tokenized once.
    tokenized = tokenizer(list(numbers))
    pieces = [_cut(tokenized[numbers[text]].ids, limit) for text in texts]
    return _Tokens(
        ids=np.concatenate(pieces),
        lengths=np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)),
        truncated=sum(tokenized[numbers[text]].untruncated_length > limit for text in texts),
    )


def _cut(ids: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.int32]:
    """The first tokens and the closing one: a text without its [SEP] is nothing the encoder has ever seen."""
    return ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1])


def _write_manifest(folder: Path, writer: _Writer) -> None:
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        _force_to_disk(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {
        "version": VERSION,
        "format": writer.format,
        "distinct": _distinct(np.load(folder / "contents.npy", mmap_mode="r")),
        "truncated": writer.truncated,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    _force_to_disk(folder / MANIFEST)
    _force_to_disk(folder)


def _distinct(contents: npt.NDArray[np.int64]) -> int:
    """How many different ids there are. They are spread evenly, so each part of their range holds its share."""
    parts = 1 + len(contents) // _SORTED_AT_ONCE
    part_width = 1 + (2**63 - 1) // parts
    if parts == 1:
        return len(np.unique(contents))
    return sum(_distinct_in_part(contents, part, part_width) for part in range(parts))


def _distinct_in_part(contents: npt.NDArray[np.int64], part: int, part_width: int) -> int:
    found = [
        block[block // part_width == part]
        for start in range(0, len(contents), _SORTED_AT_ONCE)
        if (block := contents[start : start + _SORTED_AT_ONCE]).size
    ]
    return len(np.unique(np.concatenate(found)))


def _publish(temporary: Path, folder: Path) -> None:
    """Rename into place; what stands there already is kept if it is whole, and moved out of the way if not."""
    while not _renamed(temporary, folder):
        try:
            Prepared.open(folder)
        except FileNotFoundError:
            continue
        except PreparedError:
            torn = folder.with_name(f"{folder.name}{UNFINISHED}{secrets.token_hex(4)}")
            if _renamed(folder, torn):
                shutil.rmtree(torn, ignore_errors=True)
        else:
            return
    _force_to_disk(folder.parent)


def _renamed(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except FileExistsError:
        return False
    except OSError as error:
        # ENOTEMPTY is how a rename onto a folder is refused; the other is a file in its place.
        if not target.exists() or not source.exists():
            raise
        if target.is_dir():
            return False
        raise PreparedError(f"{target.name} is in the way and is no folder.") from error
    return True


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
