"""A hundred kinds of bad input, each with its row, field, code and a word of its remedy."""
# ruff: noqa: E501 — one kind a line

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from api_schemas.errors import ERROR_CODES
from api_schemas.files import MAX_ROW_BYTES
from tests.workers.data.forms import parquet, parquet_of, zstd
from workers.data.formats import ReadOptions
from workers.data.validation import DatasetError, rows, validate


class Bad(NamedTuple):
    """A file, and what must be said of it."""

    what: str
    content: bytes
    row: int | None
    field: str | None
    code: str
    remedy: str
    options: ReadOptions = ReadOptions()


def lines(*records: dict[str, Any] | str | bytes) -> bytes:
    def line(record: dict[str, Any] | str | bytes) -> bytes:
        if isinstance(record, bytes):
            return record
        return (record if isinstance(record, str) else json.dumps(record)).encode()

    return b"\n".join(map(line, records))


def table(*rows_of_cells: str, end: str = "\n") -> bytes:
    return end.join(rows_of_cells).encode()


def column(values: pa.Array | list[Any]) -> bytes:
    return parquet_of(pa.table({"anchor": values, "positive": ["x"] * len(values)}))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.jsonl", lines(*PAIRS))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return file.getvalue()


def corrupted(content: bytes, at: int) -> bytes:
    return content[:at] + bytes(255 - byte for byte in content[at : at + 8]) + content[at + 8 :]


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth > 1 else []


PAIRS = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]
LABELS = [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}, {"text": "c", "label": 7}]
TRIPLETS = [{**pair, "negative": "n"} for pair in PAIRS]
SCORED = [{**pair, "score": score} for score, pair in enumerate(PAIRS)]
VIEWS = [{"views": ["a", "b"]}, {"views": ["c", "d"]}]
VECTORS = [{"vector": [1, 2], "label": "x"}, {"vector": [2, 1], "label": "x"}, {"vector": [2, 2], "label": "y"}]
VECTOR_PAIRS = [
    {"anchor_vector": [1, 2], "positive_vector": [2, 1]},
    {"anchor_vector": [1, 3], "positive_vector": [3, 1]},
]
HEADER = "anchor,positive"
LONG = "x" * MAX_ROW_BYTES
MANY = [f"t{n}" for n in range(65)]

KINDS = [
    # Files that are no rows at all
    Bad("nothing", b"", None, None, "empty_file", "Expected are rows"),
    Bad("blank lines", b"\n \n\r\n", None, None, "empty_file", "Expected are rows"),
    Bad("a header alone", table(HEADER), None, None, "empty_file", "Expected are rows"),
    Bad("Parquet without rows", column(pa.array([], pa.string())), None, None, "empty_file", "Expected are rows"),
    Bad("gzip of nothing", gzip.compress(b""), None, None, "empty_file", "Expected are rows"),
    Bad("a JSON array", json.dumps(PAIRS).encode(), None, None, "unsupported_file", "one object a line"),
    Bad("a JSON array over lines", json.dumps(PAIRS, indent=1).encode(), None, None, "unsupported_file", "one object a line"),
    Bad("a zip archive", zipped(), None, None, "unsupported_file", "gzip or zstd"),
    Bad("a tar archive", tarred(), None, None, "unsupported_file", "gzip or zstd"),
    Bad("a compressed tar archive", gzip.compress(tarred()), None, None, "unsupported_file", "gzip or zstd"),
    Bad("a compressed zip archive", zstd(zipped()), None, None, "unsupported_file", "gzip or zstd"),
    Bad("bzip2", bz2.compress(lines(*PAIRS)), None, None, "unsupported_file", "gzip or zstd"),
    Bad("xz", lzma.compress(lines(*PAIRS)), None, None, "unsupported_file", "gzip or zstd"),
    Bad("gzip twice", gzip.compress(gzip.compress(lines(*PAIRS))), None, None, "unsupported_file", "Compress it once"),
    Bad("a PDF document", b"%PDF-1.7\n", None, None, "unsupported_file", "JSON Lines"),
    Bad("an Arrow file", b"ARROW1\0\0" + bytes(50), None, None, "unsupported_file", "Parquet"),
    Bad("UTF-16", "anchor,positive\na,b".encode("utf-16"), None, None, "invalid_utf8", "Save it as UTF-8"),
    Bad("big-endian UTF-16", b"\xfe\xff" + "a".encode("utf-16-be"), None, None, "invalid_utf8", "Save it as UTF-8"),
    Bad("gzip that ends early", gzip.compress(lines(*PAIRS * 99))[:-12], None, None, "file_damaged", "Compress it again"),
    Bad("gzip with a wrong checksum", corrupted(gzip.compress(lines(*PAIRS)), -8), None, None, "file_damaged", "again"),
    Bad("gzip with rubbish inside", gzip.compress(b"")[:10] + b"\xff" * 40, None, None, "file_damaged", "again"),
    Bad("gzip with rubbish behind", gzip.compress(lines(*PAIRS)) + b"rubbish", None, None, "file_damaged", "again"),
    Bad("zstd that ends early", zstd(lines(*PAIRS * 99))[:-4], None, None, "file_damaged", "Compress it again"),
    Bad("zstd with rubbish inside", zstd(lines(*PAIRS))[:6] + b"\xff" * 40, None, None, "file_damaged", "again"),
    Bad("Parquet that ends early", parquet(PAIRS)[:-1], None, None, "file_damaged", "Write it again"),
    Bad("Parquet without an end", b"PAR1" + bytes(20), None, None, "file_damaged", "Write it again"),
    Bad("Parquet of four bytes", b"PAR1", None, None, "file_damaged", "Write it again"),
    Bad("Parquet with a broken footer", corrupted(parquet(PAIRS), -60), None, None, "file_damaged", "Write it again"),
    Bad("Parquet with broken pages", corrupted(parquet(PAIRS), 4), None, None, "file_damaged", "Write it again"),
    Bad("Parquet with a footer longer than itself", b"PAR1\xff\xff\xff\x7fPAR1", None, None, "file_damaged", "again"),
    Bad("encrypted Parquet", b"PARE" + bytes(20) + b"PARE", None, None, "unsupported_file", "without encryption"),
    Bad("Parquet with an encrypted footer", b"PAR1" + bytes(20) + b"PARE", None, None, "unsupported_file", "encryption"),
    # Lines that are no objects
    Bad("broken JSON", lines(*PAIRS, '{"anchor": "a" "positive": "b"}'), 3, None, "row_invalid_json", "column 16"),
    Bad("an object that ends early", lines(*PAIRS, '{"anchor": "a"'), 3, None, "row_invalid_json", "one whole JSON"),
    Bad("two objects on a line", lines(*PAIRS, '{"a": 1}{"b": 2}'), 3, None, "row_invalid_json", "one whole JSON"),
    Bad("single quotes", lines("{'anchor': 'a', 'positive': 'b'}", *PAIRS), 1, None, "row_invalid_json", "one whole JSON"),
    Bad("a list", lines(*PAIRS, "[1]"), 3, None, "row_invalid_json", "a list instead of an object"),
    Bad("a string", lines(*PAIRS, '"a"'), 3, None, "row_invalid_json", "a string instead of an object"),
    Bad("null", lines(*PAIRS, "null"), 3, None, "row_invalid_json", "null instead of an object"),
    Bad("a comment", lines(*PAIRS, "// that was all"), 3, None, "row_invalid_json", "one whole JSON object"),
    Bad("a number of 5000 digits", lines(*PAIRS, '{"n": ' + "9" * 5000 + "}"), 3, None, "row_invalid_json", "Shorten it"),
    Bad("a line feed in a string", lines(*PAIRS, '{"anchor": "a\tb"}'), 3, None, "row_invalid_json", "one whole JSON"),
    Bad("depth", lines(*PAIRS, '{"a":' * 100_000), 3, None, "json_too_deep", "Remove the nested field"),
    Bad("a list that is a little too deep", lines(*PAIRS, {**PAIRS[0], "x": nested(128)}), 3, None, "json_too_deep", "Remove the nested"),
    Bad("a key twice", lines(*PAIRS, '{"anchor": "a", "positive": "b", "anchor": "c"}'), 3, None, "duplicate_key", "Keep one"),
    Bad("a key twice, far inside", lines(*PAIRS, '{"m": {"k": 1, "k" : 2}}'), 3, None, "duplicate_key", "Keep one"),
    Bad("a key twice, written in two ways", lines('{"a": 1, "\\u0061"\t: 2}'), 1, None, "duplicate_key", "Keep one"),
    Bad("NaN", lines(*PAIRS, '{"anchor": "a", "positive": "b", "n": NaN}'), 3, None, "not_finite", "Replace it by null"),
    Bad("-Infinity", lines(*PAIRS, '{"n": -Infinity}'), 3, None, "not_finite", "Replace it by null"),
    Bad("a long line", lines(*PAIRS, {"anchor": LONG, "positive": "b"}), 3, None, "row_too_long", "Shorten its texts"),
    Bad("Latin-1", lines(*PAIRS, '{"anchor": "é"}'.encode("latin-1")), 3, None, "invalid_utf8", "Save the file as UTF-8"),
    Bad("a surrogate in UTF-8", lines(*PAIRS, b'{"anchor": "\xed\xa0\x80"}'), 3, None, "invalid_utf8", "at byte 13"),
    # Fields
    Bad("a missing field", lines({"anchor": "a"}), 1, "positive", "row_missing_field", "Add it"),
    Bad("a field that is missing later", lines(*PAIRS, {"anchor": "a"}), 3, "positive", "row_missing_field", "Add it"),
    Bad("a misspelt field", lines({"anchor": "a", "postive": "b"}), 1, "positive", "row_missing_field", "Rename 'postive'"),
    Bad("a capital letter", lines({"Anchor": "a", "Positive": "b"}), 1, "anchor", "row_missing_field", "Rename 'Anchor'"),
    Bad("a misspelt label", lines({"text": "a", "lable": "b"}), 1, "label", "row_missing_field", "Rename 'lable'"),
    Bad("a foreign partner", lines({"query": "a", "doc": "b"}), 1, "pos", "row_missing_field", "rename 'doc'"),
    Bad("foreign fields", lines({"prompt": "a", "reply": "b"}), 1, None, "row_missing_field", '"anchor"'),
    Bad("no fields", lines("{}"), 1, None, "row_missing_field", "Expected are rows"),
    Bad("a chat row", lines({"messages": []}), 1, None, "row_missing_field", "trains encoders"),
    Bad("a chat row later", lines(*PAIRS, {"messages": []}), 3, None, "row_missing_field", "trains encoders"),
    Bad("premises", lines({"premise": "a", "hypothesis": "b", "label": 1}), 1, None, "row_missing_field", "entailed"),
    Bad("labels beside pairs", lines({"sentence1": "a", "sentence2": "b", "label": 2}), 1, "label", "pairs_with_score", "leave"),
    Bad("judged answers", lines({"question": "a", "answer": "b", "label": 0}), 1, "label", "pairs_with_score", "Keep the"),
    Bad("pairs or labels", lines({**PAIRS[0], **LABELS[0]}), 1, None, "ambiguous_format", "data.format: pairs or labels"),
    Bad("labels or vectors", lines({**LABELS[0], **VECTORS[0]}), 1, None, "ambiguous_format", "data.format"),
    Bad("two positives", lines({"query": "a", "pos": "b", "positive": "c"}), 1, None, "ambiguous_format", "data.columns"),
    Bad("two negatives", lines({**TRIPLETS[0], "neg": "m"}), 1, None, "ambiguous_format", "data.columns"),
    Bad("labels among pairs", lines(*PAIRS, LABELS[0]), 3, None, "row_mixed_format", "files of their own"),
    Bad("pairs among labels", lines(*LABELS, PAIRS[0]), 4, None, "row_mixed_format", "files of their own"),
    Bad("negatives among pairs", lines(*PAIRS, TRIPLETS[0]), 3, None, "row_mixed_format", "a negative, or none"),
    Bad("pairs among negatives", lines(*TRIPLETS, PAIRS[0]), 3, None, "row_mixed_format", "a negative, or none"),
    Bad("scores among pairs", lines(*PAIRS, SCORED[0]), 3, None, "row_mixed_format", "a score, or none"),
    Bad("pairs among scores", lines(*SCORED, PAIRS[0]), 3, None, "row_mixed_format", "a score, or none"),
    Bad("a negative among scores", lines(*SCORED, {**SCORED[0], "negative": "n"}), 3, None, "row_mixed_format", "own"),
    Bad("two scores", lines({"query": "a", "pos": "b", "score": 1, "similarity": 2}), 1, None, "ambiguous_format", "data.columns"),
    Bad("scores or labels", lines({**SCORED[0], **LABELS[0]}), 1, None, "ambiguous_format", "Leave out the fields"),
    Bad("other names", lines(*PAIRS, {"query": "a", "pos": "b"}), 3, None, "row_mixed_format", "the same names"),
    Bad("labels among texts", lines({"text": "a"}, {"text": "b"}, LABELS[0]), 3, None, "row_mixed_format", "own"),
    Bad(
        "a column that was told and isn't there", lines(PAIRS[0]), 1, "frage", "row_missing_field", "Add it",
        ReadOptions(columns={"anchor": "frage"}),
    ),
    Bad(
        "a format that was told and isn't there", lines(PAIRS[0]), 1, "negative", "row_missing_field", "Add it",
        ReadOptions(format="triplets"),
    ),
    Bad(
        "a text that was told, beside a positive", lines(PAIRS[0]), 1, None, "ambiguous_format", "data.format: texts",
        ReadOptions(columns={"text": "anchor"}),
    ),
    # Texts
    Bad("an empty text", lines(*PAIRS, {"anchor": "", "positive": "b"}), 3, "anchor", "row_empty_text", "Fill it"),
    Bad("a blank text", lines(*PAIRS, {"anchor": "a", "positive": " \u00a0\n"}), 3, "positive", "row_empty_text", "Fill it"),
    Bad("no positives", lines(*PAIRS, {"anchor": "a", "positive": []}), 3, "positive", "row_empty_text", "empty list"),
    Bad("an empty negative", lines(*TRIPLETS, {**PAIRS[0], "negative": ["n", ""]}), 3, "negative", "row_empty_text", "Fill"),
    Bad("NUL", lines(*PAIRS, {"anchor": "a\0", "positive": "b"}), 3, "anchor", "invalid_unicode", "Remove it"),
    Bad("half a surrogate pair", lines(*PAIRS, {"anchor": "\ud800", "positive": "b"}), 3, "anchor", "invalid_unicode", "half"),
    Bad("a number", lines(*PAIRS, {"anchor": 3, "positive": "b"}), 3, "anchor", "row_invalid_type", "not an integer"),
    Bad("null for a text", lines(*PAIRS, {"anchor": None, "positive": "b"}), 3, "anchor", "row_invalid_type", "not null"),
    Bad("a list for an anchor", lines(*PAIRS, {"anchor": ["a"], "positive": "b"}), 3, "anchor", "row_invalid_type", "each"),
    Bad("a list in a list", lines(*PAIRS, {"anchor": "a", "positive": [["b"]]}), 3, "positive", "row_invalid_type", "strings"),
    Bad("an object for a text", lines(*PAIRS, {"anchor": {}, "positive": "b"}), 3, "anchor", "row_invalid_type", "object"),
    Bad("many positives", lines(*PAIRS, {"anchor": "a", "positive": MANY}), 3, "positive", "row_too_many_texts", "Keep"),
    Bad("many negatives", lines(*TRIPLETS, {**PAIRS[0], "negative": MANY}), 3, "negative", "row_too_many_texts", "Keep"),
    Bad("one view", lines(*VIEWS, {"views": ["a"]}), 3, "views", "row_too_few_views", "Add a view"),
    Bad("a text for views", lines(*VIEWS, {"views": "a"}), 3, "views", "row_too_few_views", "name it 'text'"),
    Bad("many views", lines(*VIEWS, {"views": MANY}), 3, "views", "row_too_many_texts", "at most 64"),
    Bad("a boolean label", lines(*LABELS, {"text": "a", "label": True}), 4, "label", "row_invalid_type", "not a boolean"),
    Bad("a fractional label", lines(*LABELS, {"text": "a", "label": 1.0}), 4, "label", "row_invalid_type", "an integer"),
    Bad("an empty label", lines(*LABELS, {"text": "a", "label": ""}), 4, "label", "row_empty_text", "Fill it"),
    # Scores
    Bad("a boolean score", lines(*SCORED, {**PAIRS[0], "score": True}), 3, "score", "row_invalid_type", "Write 1 or 0"),
    Bad("a score in quotes", lines(*SCORED, {**PAIRS[0], "score": "0.5"}), 3, "score", "row_invalid_type", "not a string"),
    Bad("no score", lines(*SCORED, {**PAIRS[0], "score": None}), 3, "score", "row_invalid_type", "not null"),
    Bad("an infinite score", lines(*SCORED, '{"anchor": "a", "positive": "b", "score": 1e999}'), 3, "score", "row_invalid_type", "infinity"),
    Bad("a score beyond floats", lines(*SCORED, {**PAIRS[0], "score": 10**400}), 3, "score", "row_invalid_type", "too large"),
    Bad("two texts with one score", lines(*SCORED, {**SCORED[0], "positive": ["b", "c"]}), 3, "positive", "row_invalid_type", "each"),
    Bad("an empty scored text", lines(*SCORED, {**SCORED[0], "anchor": " "}), 3, "anchor", "row_empty_text", "Fill it"),
    Bad("a word for a score", table(HEADER + ",score", "a,b,1", "c,d,high"), 3, "score", "row_invalid_type", "not 'high'"),
    Bad("an empty cell for a score", table(HEADER + ",score", "a,b,1", "c,d, "), 3, "score", "row_invalid_type", "an empty cell"),
    Bad("NaN in a table", table(HEADER + ",score", "a,b,1", "c,d,nan"), 3, "score", "row_invalid_type", "not 'nan'"),
    Bad("a score that isn't there in Parquet", parquet([*SCORED, PAIRS[0]]), 3, "score", "row_invalid_type", "not null"),
    # Vectors
    Bad("another dimension", lines(*VECTORS, {"vector": [1], "label": "x"}), 4, "vector", "vector_wrong_size", "one dimension"),
    Bad("one number", lines({"vector": [1], "label": "x"}), 1, "vector", "vector_wrong_size", "2 to 16384"),
    Bad("too many numbers", lines({"vector": [1] * 16385, "label": "x"}), 1, "vector", "vector_wrong_size", "2 to 16384"),
    Bad("a pair of two sizes", lines({**VECTOR_PAIRS[0], "positive_vector": [1, 2, 3]}), 1, "positive_vector", "vector_wrong_size", "one"),
    Bad("a string in a vector", lines(*VECTORS, {"vector": [1, "2"], "label": "x"}), 4, "vector", "row_invalid_type", "numbers"),
    Bad("a boolean in a vector", lines(*VECTORS, {"vector": [1, True], "label": "x"}), 4, "vector", "row_invalid_type", "numbers"),
    Bad("a vector that is none", lines(*VECTORS, {"vector": "0.1 0.2", "label": "x"}), 4, "vector", "row_invalid_type", "numbers"),
    Bad("an infinite vector", lines(*VECTORS, '{"vector": [1e999, 1], "label": "x"}'), 4, "vector", "not_finite", "Remove"),
    Bad("an integer beyond floats", lines(*VECTORS, {"vector": [10**400, 1], "label": "x"}), 4, "vector", "not_finite", "single"),
    Bad("a number beyond float32", lines(*VECTORS, {"vector": [1, 1e300], "label": "x"}), 4, "vector", "not_finite", "single"),
    Bad("zero in float32", lines(*VECTORS, {"vector": [1e-300, 0], "label": "x"}), 4, "vector", "vector_is_zero", "Scale"),
    Bad("zeros", lines(*VECTORS, {"vector": [0, -0.0], "label": "x"}), 4, "vector", "vector_is_zero", "Remove the row"),
    # Tables
    Bad("a short row", table(HEADER, "a,b", "c", "d,e"), 3, None, "row_ragged", "Quote the cells"),
    Bad("a long row", table(HEADER, "a,b", "c,d,e"), 3, None, "row_ragged", "has 3 cells, but the header has 2"),
    Bad("a short row after line ends in cells", table(HEADER, 'a,"b\n\nc"', "d"), 5, None, "row_ragged", "1 cells"),
    Bad("a quote that stays open", table(HEADER, "a,b", 'c,"d', "e,f"), 3, None, "row_invalid_csv", "written twice"),
    Bad("a quote that stays open for long", table(HEADER, 'a,"b', *["c,d"] * 300_000), 2, None, "row_invalid_csv", "Close it"),
    Bad("text behind a quote", table(HEADER, 'a,"b" c', "d,e"), 2, None, "row_invalid_csv", "written twice"),
    Bad("an empty cell", table(HEADER, "a,b", "c,"), 3, "positive", "row_empty_text", "Fill it"),
    Bad("a long row of a table", table(HEADER, "a,b", f"{LONG},c"), 3, None, "row_too_long", "Shorten its texts"),
    Bad("a table in Latin-1", "anchor;positive\na;b\nc;é".encode("latin-1"), 3, None, "invalid_utf8", "Save the file as UTF-8"),
    Bad("a table without a header", table("where is it?,here", "a,b"), None, None, "row_missing_field", "must name the columns"),
    Bad("a header with a typo", table("anchor,postive", "a,b"), None, "positive", "row_missing_field", "Rename 'postive'"),
    Bad("a header that names a column twice", table("anchor,positive,anchor", "a,b,c"), None, None, "duplicate_key", "Keep one"),
    Bad("a judged table", table("sentence1,sentence2,label", "a,b,0.1"), None, "label", "pairs_with_score", "name it 'score'"),
    Bad("an ambiguous table", table("anchor,positive,text,label", "a,b,c,d"), None, None, "ambiguous_format", "data.format"),
    Bad("line ends of long ago", table(HEADER, "a,b", "c,d", end="\r"), None, None, "row_invalid_csv", "line ends"),
    Bad("no negative in any column", table(HEADER + ",negative_1,negative_2", "a,b,,"), 2, "negative_1", "row_empty_text", "Fill"),
    # Parquet
    Bad("null in Parquet", column(["a", None]), 2, "anchor", "row_invalid_type", "not null"),
    Bad("times in Parquet", column(pa.array([0, 1], pa.timestamp("s"))), None, "anchor", "row_invalid_type", "Write strings"),
    Bad("structs in Parquet", column([{"a": 1}, {"a": 2}]), None, "anchor", "row_invalid_type", "Write strings"),
    Bad("numbers in Parquet", parquet([{"anchor": 1, "positive": "b"}]), 1, "anchor", "row_invalid_type", "a string"),
    Bad("Latin-1 in Parquet", column(pa.array(["é".encode("latin-1"), b"a"])), 1, "anchor", "invalid_utf8", "as UTF-8"),
    Bad("a long row in Parquet", column(["a", LONG + "x"]), 2, None, "row_too_long", "Shorten its texts"),
    Bad("a misspelt column", parquet([{"anchor": "a", "postive": "b"}]), None, "positive", "row_missing_field", "Rename"),
    Bad("NaN in Parquet", parquet([*VECTORS, {"vector": [float("nan"), 1], "label": "x"}]), 4, "vector", "not_finite", "NaN"),
    # Files without anything to learn from
    Bad("one pair again and again", lines(PAIRS[0], PAIRS[0]), None, None, "too_few_pairs", "Add rows"),
    Bad("one anchor for all", lines(PAIRS[0], {"anchor": "a", "positive": "c"}), None, None, "too_few_pairs", "no text in common"),
    Bad("one text again and again", lines({"text": "a"}, {"text": "a"}), None, None, "too_few_pairs", "the same text"),
    Bad("views that all meet", lines({"views": ["a", "b"]}, {"views": ["b", "c", "d"]}), None, None, "too_few_pairs", "Add"),
    Bad("one pair of vectors", lines(VECTOR_PAIRS[0], VECTOR_PAIRS[0]), None, None, "too_few_pairs", "no vector in common"),
    Bad("a negative that is the positive", lines({**PAIRS[0], "negative": "b"}), None, None, "too_few_pairs", "Add rows"),
    Bad("one score for all", lines(SCORED[0], {**SCORED[1], "score": 0.0}), None, "score", "single_score", "other scores"),
    Bad("one label", lines(LABELS[0], LABELS[1]), None, "label", "single_label", "another label"),
    Bad("one label for all vectors", lines(VECTORS[0], VECTORS[1]), None, "label", "single_label", "another label"),
    Bad("a label for each", lines(LABELS[0], LABELS[2]), None, "label", "no_positives", "one label"),
]  # fmt: skip


def test_there_are_a_hundred_kinds() -> None:
    assert len({bad.what for bad in KINDS}) == len(KINDS) >= 100


@pytest.mark.parametrize("bad", KINDS, ids=lambda bad: bad.what)
def test_bad_input_is_refused_by_row_field_code_and_remedy(tmp_path, bad):
    path = tmp_path / "upload"
    path.write_bytes(bad.content)
    report = validate(path, options=bad.options)
    assert [(error.row, error.field, error.code) for error in report.errors] == [(bad.row, bad.field, bad.code)]
    (error,) = report.errors
    assert bad.remedy in error.message
    assert bad.row is None or error.message.startswith(f"Row {bad.row}: ")
    assert error.message in report.summary
    assert len(error.message) < 400
    assert not report.usable
    assert report.counts == {(bad.code, bad.field): 1}
    if error.code not in ("empty_file", "too_few_pairs", "single_label", "single_score", "no_positives"):
        with pytest.raises(DatasetError) as raised:
            list(rows(path, options=bad.options))
        assert str(raised.value) == error.message


def test_every_code_of_rows_and_files_is_among_them_or_elsewhere() -> None:
    start, end = list(ERROR_CODES).index("empty_file"), list(ERROR_CODES).index("non_finite_loss")
    elsewhere = {"file_expands_too_much", "duplicate_id", "unknown_id"}  # test_bounds.py, test_beir.py
    elsewhere |= {"evaluation_in_training", "too_few_classes"}  # test_report.py: of files that are good by themselves
    elsewhere |= {"relevance_without_texts"}  # test_relevance.py
    assert {bad.code for bad in KINDS} >= set(list(ERROR_CODES)[start:end]) - elsewhere


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_what_was_good_before_the_damage_does_not_hide_it(tmp_path, compress: Callable[[bytes], bytes]):
    path = tmp_path / "upload"
    path.write_bytes(compress(lines(*PAIRS, "{")) + b"rubbish")
    report = validate(path)
    assert "file_damaged" in [error.code for error in report.errors]
    assert "compressed data" in report.summary


def test_the_first_hundred_of_each_kind_are_listed(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(lines(*["{"] * 250, *PAIRS, *[{"anchor": "", "positive": "b"}] * 150, {"anchor": "a"}))
    report = validate(path)
    assert report.error_count == 401
    assert report.counts == {
        ("row_invalid_json", None): 250,
        ("row_empty_text", "anchor"): 150,
        ("row_missing_field", "positive"): 1,
    }
    assert [error.row for error in report.errors] == [*range(1, 101), *range(253, 353), 403]
    assert report.summary.startswith("401 of 403 rows can't be used; the first is Row 1:")


def test_the_first_hundred_are_listed_of_however_many_kinds(tmp_path):
    path = tmp_path / "upload"
    triplet = TRIPLETS[0]
    bad = [{name: value for name, value in triplet.items() if name != left_out} for left_out in triplet]
    bad += [{**triplet, name: value} for name in triplet for value in ("", "\0", 3, ["x"] * 65)]
    path.write_bytes(lines(*TRIPLETS, *bad * 150, *["{", "{}", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', b"\xff"] * 150))
    report = validate(path)
    assert len(report.counts) > 15
    for kind, count in report.counts.items():
        listed = [error for error in report.errors if (error.code, error.field) == kind]
        assert len(listed) == 100 < count
