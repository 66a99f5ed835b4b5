"""The same records in every form of file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Records = Sequence[Mapping[str, Any]]


def json_lines(records: Records) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def delimited(records: Records, delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter, restval="")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {name: json.dumps(value) if isinstance(value, list) else value for name, value in record.items()}
        )
    return file.getvalue().encode()


def tab_separated(records: Records) -> bytes:
    return delimited(records, "\t")


def parquet(records: Records, **arguments: Any) -> bytes:
    return parquet_of(pa.Table.from_pylist([dict(record) for record in records]), **arguments)


def parquet_of(table: pa.Table, **arguments: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **arguments)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


FORMS: Mapping[str, Callable[[Records], bytes]] = {
    "jsonl": json_lines,
    "csv": delimited,
    "tsv": tab_separated,
    "parquet": parquet,
}
COMPRESSIONS: Mapping[str, Callable[[bytes], bytes]] = {"plain": bytes, "gz": gzip.compress, "zst": zstd}
