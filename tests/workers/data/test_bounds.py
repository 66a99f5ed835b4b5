"""Files made to take all memory take little, and no bytes make a reader stumble."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from api_schemas.errors import ERROR_CODES
from tests.workers.data.forms import COMPRESSIONS, FORMS, delimited, json_lines, parquet, parquet_of, zstd
from tests.workers.data.test_sources import DATASETS
from workers.data import parquet_layout
from workers.data.formats import ROLES, ReadOptions
from workers.data.parquet_layout import BrokenLayoutError, Chunk, Pages, TooLargePageError
from workers.data.validation import DatasetError, rows, validate

MIB = 1024**2
#: What a validation may take beyond the libraries themselves. The bombs below hold or promise many times as much.
MEMORY_MIB = 250
# VmHWM and not ru_maxrss, which begins with the parent's.
MEASURED = """
import json, re, sys
from pathlib import Path
import pyarrow.compute, pyarrow.parquet
from workers.data.validation import validate
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
report = validate(Path(sys.argv[1]))
print(json.dumps([[[error.row, error.code] for error in report.errors], peak() - before]))
"""
PIECE = 16 * MIB


def repeated_list(times: int) -> bytes:
    numbers = pa.ListArray.from_arrays([0, times], pa.repeat(pa.scalar(1.5, pa.float32()), times))
    return parquet_of(pa.table({"vector": numbers, "label": ["x"]}))


def repeated_text() -> bytes:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * (MIB - 100)])
    return parquet_of(pa.table({"text": texts}))


def list_of_repeated_text() -> bytes:
    entries = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000 + [1], pa.int32()), ["x" * MIB, "y"])
    lists = pa.ListArray.from_arrays([0, 100_000, 100_001], entries)
    return parquet_of(pa.table({"views": lists}))


BOMBS = {
    "a line of gzip": (gzip.compress(b"x" * PIECE) * 40, [[None, "file_expands_too_much"]]),
    "lines of gzip": (
        gzip.compress((b"{" + b"x" * 1022 + b"\n") * (PIECE // 1024)) * 40,
        [[None, "file_expands_too_much"]],
    ),
    "blank lines of zstd": (zstd((b" " * 1023 + b"\n") * (PIECE // 1024)) * 40, [[None, "file_expands_too_much"]]),
    "a text that Parquet repeats": (repeated_text(), [[None, "file_expands_too_much"]]),
    "a text that Parquet repeats by its prefix": (
        parquet_of(
            pa.table({"text": ["x" * (MIB - 100)] * 300}),
            use_dictionary=False,
            column_encoding={"text": "DELTA_BYTE_ARRAY"},
            compression="zstd",
        ),
        [[None, "file_expands_too_much"]],
    ),
    "a text in a list that Parquet repeats": (
        list_of_repeated_text(),
        [[1, "row_too_many_texts"], [2, "row_too_few_views"]],
    ),
    "a page of Parquet": (
        parquet_of(pa.table({"text": ["x" * 100 * MIB]}), use_dictionary=False, compression="zstd"),
        [[None, "file_expands_too_much"]],
    ),
    "a list that Parquet repeats": (repeated_list(2**25), [[None, "file_expands_too_much"]]),
    "a quote of CSV": (gzip.compress(b'text\n"' + b"abc,\n" * 40 * MIB, 1), [[2, "row_invalid_csv"]]),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path, bomb):
    content, expected = BOMBS[bomb]
    path = tmp_path / "upload"
    path.write_bytes(content)
    errors, growth = measured(path)
    assert [error for error in errors if error[1] != "row_invalid_json"] == expected
    assert growth < MEMORY_MIB


def test_an_open_quote_before_200_megabytes_takes_little_memory(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b'text\n"')
    with path.open("r+b") as file:
        file.truncate(200 * MIB)
    errors, growth = measured(path)
    assert errors == [[2, "row_too_long"]]
    assert growth < 20


def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path):
    path = tmp_path / "upload"
    words = random.Random(1)
    records = [{"anchor": f"{n} {words.random()}", "positive": f"{words.random()} {n}" * 10} for n in range(60_000)]
    for write in FORMS.values():
        path.write_bytes(write(records))
        errors, growth = measured(path)
        assert errors == []
        assert growth < 60


def measured(path: Path) -> tuple[list[list], int]:
    """What a process of its own refuses, as (row, code), and by how many MiB its memory grew at most."""
    done = subprocess.run([sys.executable, "-c", MEASURED, path], capture_output=True, check=True, timeout=120)
    errors, growth = json.loads(done.stdout)
    return errors, growth


def test_a_compressed_file_is_held_to_the_bound_that_was_told(tmp_path):
    path = tmp_path / "upload"
    content = json_lines(DATASETS["pairs"])
    for form, compress in COMPRESSIONS.items():
        path.write_bytes(compress(content))
        report = validate(path, options=ReadOptions(max_expanded_bytes=len(content) - 1))
        assert report.usable is (form == "plain")
        assert validate(path, options=ReadOptions(max_expanded_bytes=len(content))).usable


def test_repetitive_text_is_no_bomb(tmp_path):
    path = tmp_path / "upload"
    content = json_lines([{"anchor": "a" * 500, "positive": "b" * 500}] * 20_000 + [{"anchor": "c", "positive": "d"}])
    path.write_bytes(gzip.compress(content))
    assert path.stat().st_size * 200 < len(content)
    assert validate(path).usable


# What Parquet declares


def page(inflated: int, compressed: int, values: int) -> bytes:
    """A data page of zeros, as parquet.thrift has it: its type, its two sizes, the header of data."""
    header = b"\x15\x00\x15" + varint(inflated) + b"\x15" + varint(compressed)
    return header + b"\x2c\x15" + varint(values) + b"\x15\x00\x15\x06\x15\x06\x00\x00" + bytes(compressed)


def varint(number: int) -> bytes:
    number, encoded = number << 1, b""
    while number >= 0x80:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def read_pages(content: bytes, *, is_list: bool = False) -> Pages:
    return parquet_layout.pages(io.BytesIO(content), Chunk(0, len(content), 1, 1), is_list=is_list)


def test_pages_are_read_to_the_end_of_their_chunk():
    content = page(1000, 300, 10) + page(4000, 20, 20) + page(10, 10, 10)
    assert read_pages(content) == Pages(inflated=5010, value_bytes=200, only_entries=False, prefixed=False)


@pytest.mark.parametrize(
    "content",
    [
        page(2**31 - 1, 100, 10),
        page(300 * MIB, 10 * MIB, 10),
        page(65 * MIB, 1000, 2**20),
        page(100, 100, 10) + page(2**31 - 1, 100, 10),
    ],
)
def test_pages_that_promise_too_much_are_refused(content):
    with pytest.raises(TooLargePageError):
        read_pages(content)


def test_lists_that_promise_too_many_values_are_refused():
    content = page(1000, 300, 2**24) * 2
    assert read_pages(content).inflated == 2000
    with pytest.raises(TooLargePageError):
        read_pages(content, is_list=True)


@pytest.mark.parametrize(
    "content", [b"\x00", b"\xff" * 20, page(10, 10, 1)[:-1], b"\x1c" * 50, b"\x19\xfc" + b"\xff" * 4]
)
def test_what_is_no_page_is_refused(content):
    with pytest.raises(BrokenLayoutError):
        read_pages(content)


def test_a_page_that_lies_about_its_size_is_refused(tmp_path):
    path = tmp_path / "upload"
    content = parquet_of(pa.table({"text": ["a", "b"]}), compression="none", use_dictionary=False)
    reader = parquet_layout.Reader(io.BytesIO(content[4:]), MIB)
    header = reader.struct()
    body = content[4 + reader.length :]
    lying = page(2**31 - 1, header[3], 2)[: -header[3]]
    path.write_bytes(b"PAR1" + lying + body)
    assert validate(path).errors[0].code in ("file_damaged", "file_expands_too_much")


# Any bytes

FILES = [
    compress(write(records))
    for records in DATASETS.values()
    for write in FORMS.values()
    for compress in COMPRESSIONS.values()
]
PARQUET_FILES = [
    parquet(DATASETS["pairs"] * 50, row_group_size=100, data_page_size=300, **arguments)
    for arguments in (
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": False},
        {"data_page_version": "2.0"},
        {
            "use_dictionary": False,
            "column_encoding": {"question": "DELTA_BYTE_ARRAY", "answer": "DELTA_LENGTH_BYTE_ARRAY"},
        },
    )
]
STARTS = [
    b"",
    b"{",
    b"text,label\n",
    b'anchor\tpositive\n"',
    b"PAR1",
    b"\x1f\x8b\x08\x00",
    b"\x28\xb5\x2f\xfd",
    b"\xef\xbb\xbf",
]
PIECES = st.sampled_from(
    [b'"', b",", b"\n", b"\r\n", b"\t", b'""', b"{}", b"[", b"\\u0000", b"\xff", b"\0", b"text", b"a"]
)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=100) | st.lists(PIECES, max_size=40).map(b"".join))
def test_any_bytes_are_judged(tmp_path, start, rest):
    judge(tmp_path / "upload", start + rest)


ROLE_NAMES = sorted({role for roles in ROLES.values() for role in roles})
NAMES_IN_FILES = st.sampled_from(
    ["anchor", "positive", "neg", "text", "label", "lable", "vector", "views", "query", "x"]
)


@settings(MANY, max_examples=100)
@given(names=st.lists(NAMES_IN_FILES, min_size=1, max_size=4, unique=True), data=st.data())
def test_any_names_are_judged_whatever_was_told_of_them(tmp_path, names, data):
    formats = st.none() | st.sampled_from([*ROLES])
    told, data_format = data.draw(st.dictionaries(st.sampled_from(ROLE_NAMES), NAMES_IN_FILES)), data.draw(formats)
    try:
        options = ReadOptions(columns=told, format=data_format)
    except ValueError:
        reject()
    for write in (json_lines, delimited):
        judge(tmp_path / "upload", write([dict.fromkeys(names, text) for text in "abb"]), options)


@pytest.mark.parametrize("depth", [120, 500, 900])
def test_what_is_read_does_not_depend_on_who_reads_it(tmp_path, depth):
    path = tmp_path / "upload"
    path.write_text("".join(f'{{"text": "{text}", "x": {"[" * depth}{"]" * depth}}}\n' for text in "ab"))

    def from_below(frames: int) -> bool:
        return from_below(frames - 1) if frames else validate(path).usable

    assert from_below(0) is from_below(300) is (depth < 128)


@MANY
@given(data=st.data(), content=st.sampled_from(FILES + PARQUET_FILES))
def test_any_mutation_of_a_good_file_is_judged(tmp_path, data, content):
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        mutated[at : at + data.draw(st.sampled_from([0, 1, 1, 1, 5]))] = data.draw(st.binary(max_size=3) | PIECES)
    judge(tmp_path / "upload", bytes(mutated[: data.draw(st.none() | st.integers(0, len(mutated)))]))


def judge(path: Path, content: bytes, options: ReadOptions | None = None) -> None:
    """Both readings of a file agree, and nothing but what is documented is raised."""
    path.write_bytes(content)
    report = validate(path, options=options)
    assert report.usable == (not report.errors)
    # Of scored pairs it says that they are not trained on.
    assert (report.summary is None) == (report.usable and report.format != "scored_pairs")
    assert sum(report.counts.values()) == report.error_count >= len(report.errors)
    for error in report.errors:
        assert error.code in ERROR_CODES
        error.message.encode()
        assert len(error.message) < 600
    try:
        read = list(rows(path, options=options))
    except DatasetError:
        assert not report.usable
    else:
        assert len(read) == report.rows
