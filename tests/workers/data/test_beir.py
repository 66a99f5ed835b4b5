"""A corpus, queries and relevance judgements as pairs."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from workers.data import beir
from workers.data.row import Row
from workers.data.validation import DatasetError

CORPUS = [
    {"_id": "d1", "title": "Parcels", "text": "Track a delivery"},
    {"_id": "d2", "title": "", "text": "Ask for a refund"},
    {"_id": 3, "text": "Empty is allowed elsewhere", "metadata": {}},
    {"_id": "d4", "title": "", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "Where is it?"}, {"_id": "q2", "text": "Charged twice"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td2\t2\nq2\t3\t1\n"


@pytest.fixture
def triple(tmp_path):
    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS) -> tuple[Path, Path, Path]:
        paths = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
        paths[0].write_text("\n".join(map(json.dumps, corpus)))
        paths[1].write_bytes(gzip.compress("\n".join(map(json.dumps, queries)).encode()))
        paths[2].write_text(qrels)
        return paths

    return write


def test_relevant_documents_make_pairs_with_their_queries(triple):
    paths = triple()
    assert list(beir.rows(*paths)) == [
        Row("pairs", ("Where is it?", "Parcels Track a delivery")),
        Row("pairs", ("Charged twice", "Ask for a refund")),
        Row("pairs", ("Charged twice", "Empty is allowed elsewhere")),
    ]
    report = beir.validate(*paths)
    assert (report.usable, report.format, report.rows) == (True, "pairs", 3)


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        ({"qrels": QRELS + "q9\td1\t1\n"}, (6, "query-id", "unknown_id"), "the query 'q9'"),
        ({"qrels": QRELS + "q1\td9\t1\n"}, (6, "corpus-id", "unknown_id"), "the document 'd9'"),
        ({"qrels": QRELS + "q1\td4\t1\n"}, (6, "corpus-id", "row_empty_text"), "empty"),
        ({"qrels": QRELS + "q1\td1\tyes\n"}, (6, "score", "row_invalid_type"), "number"),
        ({"qrels": QRELS + "q1\td1\tnan\n"}, (6, "score", "row_invalid_type"), "number"),
        ({"qrels": QRELS + "q1\td1\n"}, (6, None, "row_ragged"), "2 cells"),
        ({"qrels": "q1\td1\t1\n"}, (None, "query-id", "row_missing_field"), "must name 'query-id'"),
        ({"corpus": [*CORPUS, CORPUS[0]]}, (5, "_id", "duplicate_id"), "(corpus)"),
        ({"corpus": [*CORPUS, {"_id": "d5"}]}, (5, "text", "row_missing_field"), "(corpus)"),
        ({"corpus": [*CORPUS, {"_id": "d5", "text": 5}]}, (5, "text", "row_invalid_type"), "(corpus)"),
        ({"queries": [*QUERIES, {"text": "no id"}]}, (3, "_id", "row_missing_field"), "(queries)"),
        ({"queries": [*QUERIES, {"_id": "\ud800", "text": "t"}]}, (3, "_id", "invalid_unicode"), "(queries)"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, (None, None, "empty_file"), "no rows"),
    ],
)
def test_what_is_refused_is_named_by_file_and_row(triple, arguments, expected, said):
    paths = triple(**arguments)
    report = beir.validate(*paths)
    (error,) = report.errors
    assert (error.row, error.field, error.code) == expected
    assert said in error.message
    if error.code != "empty_file":
        with pytest.raises(DatasetError):
            list(beir.rows(*paths))


def test_a_corpus_is_never_in_memory_as_a_whole(triple):
    corpus = [{"_id": str(n), "text": f"{n} " + "word " * 200} for n in range(20_000)]
    paths = triple(corpus=corpus, qrels="query-id\tcorpus-id\tscore\nq1\t5\t1\n")
    del corpus
    tracemalloc.start()
    assert len(list(beir.rows(*paths))) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024**2 < paths[0].stat().st_size / 4
