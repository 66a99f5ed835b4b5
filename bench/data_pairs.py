"""Short texts like those that people have: what the standard library's docstrings say, cut up and put together anew.

A text is two runs of words, each from somewhere in all the sentences. So words come as often as in English, next to
words that they stand beside in English, and of a million texts hardly any but the shortest comes twice.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from service.demo.docstrings import as_pair
from service.demo.library import standard_library
from workers.data.row import Row

#: Words of a text: exp of a normal distribution, about 12 tokens on average, one in a hundred above 30.
_MEAN_LOG_WORDS, _SPREAD_LOG_WORDS = 1.86, 0.45
_FEWEST_WORDS, _MOST_WORDS = 2, 60
_DRAWN_AT_ONCE = 8192
#: Of the labels made, the most frequent has some 3 % of the rows and the rarest 0.05 %.
_LABELS = 1000


def words() -> list[str]:
    """The words of all sentences, one after another. The same Python gives the same ones."""
    found = (as_pair(item) for item in standard_library())
    return [word for pair in found if pair is not None for word in pair.positive.split()]


def pairs(rows: int, every: list[str], seed: int = 0) -> Iterator[Row]:
    """Anchors and positives, of lengths that say nothing of each other: the hardest case for length buckets."""
    texts = _texts(every, seed)
    return (Row("pairs", (next(texts), next(texts))) for _ in range(rows))


def triplets(rows: int, every: list[str], seed: int = 0) -> Iterator[Row]:
    """Anchors, positives and one hard negative each."""
    texts = _texts(every, seed)
    return (Row("triplets", (next(texts), next(texts), next(texts))) for _ in range(rows))


def labelled(rows: int, every: list[str], seed: int = 0) -> Iterator[Row]:
    """Texts with labels, some of them sixty times as frequent as others."""
    labels = (np.random.default_rng([seed, 1]).random(rows) ** 2 * _LABELS).astype(int).tolist()
    return (Row("labels", (text,), f"class {label}") for text, label in zip(_texts(every, seed), labels, strict=False))


def write(rows: Iterator[Row], path: Path) -> None:
    """Write pairs in the form that the path's extension names."""
    _WRITERS["".join(path.suffixes)](rows, path)


def _texts(every: list[str], seed: int) -> Iterator[str]:
    rng = np.random.default_rng([seed, 0])
    while True:
        lengths = np.exp(rng.normal(_MEAN_LOG_WORDS, _SPREAD_LOG_WORDS, _DRAWN_AT_ONCE)).round().astype(int)
        lengths = lengths.clip(_FEWEST_WORDS, _MOST_WORDS)
        firsts = (lengths * rng.random(_DRAWN_AT_ONCE)).astype(int)
        starts = rng.integers(0, len(every) - _MOST_WORDS, (2, _DRAWN_AT_ONCE))
        drawn = zip(starts[0].tolist(), starts[1].tolist(), firsts.tolist(), lengths.tolist(), strict=True)
        for one, other, first, length in drawn:
            yield " ".join(every[one : one + first] + every[other : other + length - first])


def _write_json_lines(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_lines(rows))


def _write_gzip(rows: Iterator[Row], path: Path) -> None:
    with gzip.open(path, "wt", compresslevel=6, encoding="utf-8") as file:
        file.writelines(_lines(rows))


def _write_zstd(rows: Iterator[Row], path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        for line in _lines(rows):
            stream.write(line.encode())


def _write_csv(rows: Iterator[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["anchor", "positive"])
        writer.writerows(row.inputs for row in rows)


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    schema = pa.schema([("anchor", pa.string()), ("positive", pa.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while chunk := [row.inputs for row in islice(rows, 100_000)]:
            anchors, positives = zip(*chunk, strict=True)
            writer.write_table(pa.table([pa.array(anchors), pa.array(positives)], schema=schema))


def _lines(rows: Iterator[Row]) -> Iterator[str]:
    for row in rows:
        anchor, positive = row.inputs
        yield json.dumps({"anchor": anchor, "positive": positive}, ensure_ascii=False) + "\n"


_WRITERS = {
    ".jsonl": _write_json_lines,
    ".jsonl.gz": _write_gzip,
    ".jsonl.zst": _write_zstd,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
