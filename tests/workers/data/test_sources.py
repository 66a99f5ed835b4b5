"""One dataset, whatever form of file it comes in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.workers.data.forms import COMPRESSIONS, FORMS, delimited, json_lines, parquet, parquet_of, zstd
from workers.data.formats import ReadOptions
from workers.data.row import Row
from workers.data.validation import StoppedError, rows, validate

ODD = 'comma, semicolon; tab\t "quotes", \\ and\nline\r\nends — ünïcode 🙂'
DATASETS = {
    "pairs": [{"question": f"q{n} {ODD}", "answer": f"a{n}", "page": n} for n in range(5)],
    "positives": [{"query": f"q{n}", "pos": [f"a{n}", f"b{n}, too"]} for n in range(5)],
    "triplets": [{"anchor": f"q{n}", "positive": f"a{n}", "negative": ODD} for n in range(5)],
    "lists of negatives": [{"query": f"q{n}", "pos": [f"a{n}"], "neg": [f"x{n}", ODD][: 1 + n % 2]} for n in range(5)],
    "numbered negatives": [
        {"anchor": f"q{n}", "positive": f"a{n}", "negative_1": "n", "negative_2": ODD, "negative_10": "last"}
        for n in range(5)
    ],
    "scored pairs": [{"sentence1": f"q{n} {ODD}", "sentence2": f"[a{n}]", "score": n / 4} for n in range(5)],
    "judged pairs": [{"text_a": f"q{n}", "text_b": f"a{n}", "is_duplicate": n % 2} for n in range(5)],
    "labels": [{"text": f"t{n} {ODD}", "label": n % 2} for n in range(5)],
    "sentences": [{"sentence": f"[t{n}]", "label": "ab"[n % 2]} for n in range(5)],
    "views": [{"views": [f"v{n}", f"{n} {ODD}", f"w{n}"]} for n in range(5)],
    "texts": [{"text": f"t{n} {ODD}"} for n in range(5)],
    "vectors": [{"embedding": [n + 0.5, -1e-7], "label": "ab"[n % 2]} for n in range(5)],
    "vector pairs": [{"anchor_vector": [n, 1.0, 2.5], "positive_vector": [1.0, n, 0.1]} for n in range(5)],
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_gives_the_same_rows_in_every_form(tmp_path, name):
    path = tmp_path / "upload"
    path.write_bytes(json_lines(DATASETS[name]))
    expected = list(rows(path))
    assert len(expected) == (10 if name == "positives" else 5)
    for form, write in FORMS.items():
        for compression, compress in COMPRESSIONS.items():
            path.write_bytes(compress(write(DATASETS[name])))
            report = validate(path)
            assert report.usable, (form, compression, report.summary)
            assert (report.rows, report.format) == (len(expected), expected[0].format)
            assert list(rows(path)) == expected, (form, compression)


def test_every_format_is_among_them(tmp_path):
    path = tmp_path / "upload"
    found = set()
    for records in DATASETS.values():
        path.write_bytes(json_lines(records))
        found.add(validate(path).format)
    assert found == {"pairs", "triplets", "scored_pairs", "labels", "views", "texts", "vectors", "vector_pairs"}


def test_the_lines_of_a_table_are_counted_where_its_rows_begin(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b'\xef\xbb\xbfanchor,positive\r\n"a\r\nb",c\r\n\r\nd,""\r\n"e\n\n\nf"\r\n,g\r\n')
    report = validate(path)
    assert [(error.row, error.field, error.code) for error in report.errors] == [
        (5, "positive", "row_empty_text"),
        (6, None, "row_ragged"),
        (10, "anchor", "row_empty_text"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_are_told_by_the_header(tmp_path, delimiter):
    path = tmp_path / "upload"
    path.write_bytes(delimited([{"id, or number": "1", "anchor": "a", "positive": "b;b,b"}], delimiter))
    assert list(rows(path)) == [Row("pairs", ("a", "b;b,b"))]


def test_a_table_of_one_column(tmp_path):
    path = tmp_path / "upload"
    path.write_text("text\none\ntwo, or so\n".replace("two, or so", '"two, or so"'))
    assert [row.inputs for row in rows(path)] == [("one",), ("two, or so",)]


def test_a_name_tells_where_a_header_does_not(tmp_path):
    path = tmp_path / "upload"
    path.write_text("my text\nhello\n")
    assert validate(path, filename="rows.csv.gz").errors[0].message.startswith("The header has 'my text'. It must name")
    assert validate(path, filename="rows.jsonl").errors[0].code == "row_invalid_json"


def test_columns_are_read_under_the_names_that_were_told(tmp_path):
    path = tmp_path / "upload"
    records = [{"frage": f"q{n}", "antwort": f"a{n}", "text": "t", "label": "l"} for n in range(3)]
    options = ReadOptions(columns={"anchor": "frage", "positive": "antwort"})
    for write in FORMS.values():
        path.write_bytes(write(records))
        assert [row.inputs for row in rows(path, options=options)] == [("q0", "a0"), ("q1", "a1"), ("q2", "a2")]
        assert not validate(path).errors[0].message.startswith("Row 1: could be pairs")


def test_a_column_that_was_told_stands_beside_one_that_is_known(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(json_lines([{"text": "t", "intent": "buy"}, {"text": "u", "intent": "buy"}]))
    assert [row.label for row in rows(path, options=ReadOptions(columns={"label": "intent"}))] == ["buy", "buy"]


def test_a_name_that_was_told_for_one_role_is_not_read_as_another(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(json_lines([{"negative": f"q{n}", "positive": f"a{n}", "neg": f"n{n}"} for n in range(2)]))
    options = ReadOptions(columns={"anchor": "negative"})
    assert [row.inputs for row in rows(path, options=options)] == [("q0", "a0", "n0"), ("q1", "a1", "n1")]
    assert validate(path, options=ReadOptions(columns={"anchor": "positive"})).errors[0].code == "row_missing_field"


def test_a_format_that_was_told_settles_what_is_ambiguous(tmp_path):
    path = tmp_path / "upload"
    record = {"anchor": "a", "positive": "b", "negative": "n", "text": "t", "label": "l", "embedding": [1, 2]}
    path.write_bytes(json_lines([record]))
    assert validate(path).errors[0].code == "ambiguous_format"
    expected = {
        "pairs": (("a", "b"), None),
        "triplets": (("a", "b", "n"), None),
        "labels": (("t",), "l"),
        "texts": (("t",), None),
        "vectors": (((1.0, 2.0),), "l"),
    }
    for name, (inputs, label) in expected.items():
        assert list(rows(path, options=ReadOptions(format=name))) == [Row(name, inputs, label)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"format": "tokens"}, "format must be one of"),
        ({"columns": {"anker": "a"}}, "columns must name the roles of one format"),
        ({"columns": {"anchor": "a", "label": "b"}}, "columns must name the roles of one format"),
        ({"columns": {"anchor": "a", "score": "a"}}, "a different column for each role"),
        ({"columns": {"text": "a"}, "format": "pairs"}, "columns must name 'anchor' and 'positive'"),
        ({"columns": {"anchor": "a", "positive": "a"}}, "a different column for each role"),
        ({"columns": {"anchor_vector": "positive_vector"}}, "a different column for each role"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        ReadOptions(**arguments)


@pytest.mark.parametrize(
    "record",
    [
        {"anchor": "a", "positive": "b", "score": 3},
        {"query": "a", "pos": "b", "similarity_score": 3.0},
        {"question": "a", "answer": "b", "similarity": 3, "label": "l"},
        {"text_a": "a", "text_b": "b", "score": 3, "id": 7},
    ],
)
def test_scores_are_known_by_several_names_beside_every_pair(tmp_path, record):
    path = tmp_path / "upload"
    path.write_bytes(json_lines([record]))
    assert list(rows(path)) == [Row("scored_pairs", ("a", "b"), score=3.0)]


def test_a_score_may_be_any_finite_number(tmp_path):
    path = tmp_path / "upload"
    path.write_text("anchor,positive,score\na,b,-1e-3\nc,d, 4 \ne,f,-0.0\n")
    assert [row.score for row in rows(path)] == [-0.001, 4.0, 0.0]
    path.write_bytes(parquet_of(pa.table({"anchor": ["a"], "positive": ["b"], "score": pa.array([0.5], pa.float32())})))
    assert [row.score for row in rows(path)] == [0.5]


def test_pairs_with_scores_are_pairs_where_that_was_told_and_triplets_where_they_have_negatives(tmp_path):
    path = tmp_path / "upload"
    record = {"anchor": "a", "positive": "b", "score": 0.5}
    path.write_bytes(json_lines([record]))
    assert list(rows(path, options=ReadOptions(format="pairs"))) == [Row("pairs", ("a", "b"))]
    path.write_bytes(json_lines([{**record, "negative": "n"}]))
    assert list(rows(path)) == [Row("triplets", ("a", "b", "n"))]


def test_a_score_without_a_pair_is_a_field_that_nobody_knows(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(json_lines([{"text": "t", "score": 1}]))
    assert list(rows(path)) == [Row("texts", ("t",))]
    path.write_bytes(json_lines([{"text": "t", "label": "l", "score": 1}]))
    assert list(rows(path)) == [Row("labels", ("t",), "l")]


def test_what_a_score_is_called_may_be_told_of_a_file_that_another_is_trained_beside(tmp_path):
    path = tmp_path / "upload"
    options = ReadOptions(columns={"score": "label"})
    for record, row in [
        ({"sentence1": "a", "sentence2": "b", "label": 4}, Row("scored_pairs", ("a", "b"), score=4.0)),
        ({"sentence1": "a", "sentence2": "b"}, Row("pairs", ("a", "b"))),
        ({"text": "a", "label": "x"}, Row("labels", ("a",), "x")),
    ]:
        path.write_bytes(json_lines([record]))
        assert list(rows(path, options=options)) == [row]
    path.write_bytes(json_lines([{"prompt": "a", "reply": "b"}]))
    assert '"anchor"' in validate(path, options=options).errors[0].message


def test_parquet_of_every_type_that_texts_come_in(tmp_path):
    path = tmp_path / "upload"
    texts = ["a", "b", "c ü"]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())):
        path.write_bytes(
            parquet_of(pa.table({"text": pa.array(texts).cast(kind), "label": pa.array([1, 1, 2], pa.uint16())}))
        )
        assert [row.inputs[0] for row in rows(path)] == texts, kind
        assert [row.label for row in rows(path)] == ["1", "1", "2"]


def test_parquet_of_every_type_that_vectors_come_in(tmp_path):
    path = tmp_path / "upload"
    vectors = [[1.0, 2.0], [3.0, 0.5]]
    for number in (pa.float16(), pa.float32(), pa.float64()):
        for kind in (pa.list_(number), pa.list_(number, 2), pa.large_list(number)):
            labels = pa.array(["x", "x"]).dictionary_encode()
            path.write_bytes(parquet_of(pa.table({"vector": pa.array(vectors, kind), "label": labels})))
            assert [list(row.inputs[0]) for row in rows(path)] == vectors, kind


def test_parquet_is_read_over_batches_groups_and_pages(tmp_path):
    path = tmp_path / "upload"
    records = [{"anchor": f"q{n}", "positive": f"a{n % 7}", "unread": [n]} for n in range(3000)]
    path.write_bytes(parquet(records, row_group_size=1100, data_page_size=500, compression="zstd"))
    assert [row.inputs for row in rows(path)] == [(f"q{n}", f"a{n % 7}") for n in range(3000)]


def test_rows_of_parquet_are_counted_from_one(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(parquet([{"anchor": "a", "positive": None if n == 1299 else str(n)} for n in range(1500)]))
    (error,) = validate(path).errors
    assert (error.row, error.field, error.code) == (1300, "positive", "row_invalid_type")


def test_members_and_frames_one_after_another_are_one_file(tmp_path):
    path = tmp_path / "upload"
    one, other = json_lines(DATASETS["pairs"][:2]), json_lines(DATASETS["pairs"][2:])
    for compress in COMPRESSIONS.values():
        path.write_bytes(compress(one) + compress(other))
        assert len(list(rows(path))) == 5


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_progress_is_told_in_bytes_of_the_file_and_validation_can_be_stopped(tmp_path, form, compression):
    path = tmp_path / "upload"
    path.write_bytes(COMPRESSIONS[compression](FORMS[form](DATASETS["pairs"] * 100)))
    heard: list[int] = []
    validate(path, progress=heard.append)
    assert 0 < heard[-1] <= path.stat().st_size
    with pytest.raises(StoppedError):
        validate(path, should_stop=lambda: True)


def test_json_lines_and_csv_need_neither_torch_nor_numpy_nor_pyarrow(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(COMPRESSIONS["gz"](delimited(DATASETS["pairs"])))
    program = (
        "import sys; from pathlib import Path; from workers.data.validation import validate\n"
        "assert validate(Path(sys.argv[1])).usable; sys.exit(bool({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False, cwd=Path.cwd()).returncode == 0


def test_a_compressed_file_says_when_it_is_compressed_twice(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(zstd(COMPRESSIONS["gz"](json_lines(DATASETS["pairs"]))))
    assert "twice" in validate(path).summary
