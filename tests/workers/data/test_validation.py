from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_schemas.errors import ERROR_CODES
from api_schemas.files import MAX_LISTED_ERRORS, MAX_ROW_BYTES
from workers.data import json_lines, recurrence
from workers.data.row import RowRefusedError
from workers.data.validation import FileReport, rows, validate

PAIR = '{"anchor": "a", "positive": "b"}'
OTHER_PAIR = '{"anchor": "c", "positive": "d"}'
LABELLED = '{"text": "a", "label": "x"}'
GOOD_LABELS = [LABELLED, '{"text": "b", "label": "x"}', '{"text": "c", "label": 7}']
ANY_BYTES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def report_on(path: Path, *lines: str | bytes, end: bytes = b"\n") -> FileReport:
    path.write_bytes(end.join(line.encode() if isinstance(line, str) else line for line in lines))
    return validate(path)


def only_error(report: FileReport) -> tuple[str, int | None, str | None]:
    assert report.error_count == 1
    assert not report.usable
    (error,) = report.errors
    assert error.message in report.summary
    return error.code, error.row, error.field


# Files that are fine


def test_pairs(path):
    report = report_on(path, PAIR, OTHER_PAIR)
    assert (report.format, report.rows, report.error_count, report.errors) == ("pairs", 2, 0, [])
    assert report.usable
    assert report.summary is None


def test_labels_may_be_strings_or_integers(path):
    report = report_on(path, *GOOD_LABELS)
    assert (report.format, report.rows, report.usable) == ("labels", 3, True)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n \t\n"])
def test_line_ends_and_blank_lines_do_not_matter(path, end):
    assert report_on(path, PAIR, OTHER_PAIR, b"", end=end).rows == 2


def test_a_byte_order_mark_is_tolerated(path):
    assert report_on(path, b"\xef\xbb\xbf" + PAIR.encode(), OTHER_PAIR).usable


def test_extra_fields_are_ignored(path):
    rich = '{"anchor": "a", "positive": "b", "reviewer": "n", "meta": {"tags": [1.5, null, true]}}'
    assert report_on(path, rich, OTHER_PAIR).usable


def test_a_pair_with_a_text_beside_it_is_still_a_pair(path):
    assert report_on(path, PAIR[:-1] + ', "text": "t"}', OTHER_PAIR).format == "pairs"


def test_a_row_of_exactly_the_longest_length(path):
    for end in (b"\n", b"\r\n"):
        row = PAIR[:-2] + "b" * (MAX_ROW_BYTES - len(PAIR)) + '"}'
        assert len(row) == MAX_ROW_BYTES
        assert report_on(path, row, OTHER_PAIR, end=end).rows == 2


def test_progress_is_told_in_bytes(path):
    path.write_text("\n".join([PAIR, OTHER_PAIR] * 2000))
    heard: list[int] = []
    validate(path, progress=heard.append)
    assert heard == sorted(heard)
    assert 0 < heard[-1] <= path.stat().st_size


# Rows that are refused


def test_broken_json_is_refused_with_its_row_and_column(path):
    report = report_on(path, *[PAIR, OTHER_PAIR] * 3, '{"anchor": "a" "positive": "b"}')
    assert only_error(report) == ("row_invalid_json", 7, None)
    assert "column 16" in report.errors[0].message
    assert report.summary.startswith("1 of 7 rows can't be used")


def test_blank_lines_keep_the_numbering(path):
    assert only_error(report_on(path, PAIR, "", "  ", "{", OTHER_PAIR))[:2] == ("row_invalid_json", 4)


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ("[1]", "row_invalid_json", None),
        ('"text"', "row_invalid_json", None),
        ("null", "row_invalid_json", None),
        (PAIR + PAIR, "row_invalid_json", None),
        ("anchor,positive", "row_invalid_json", None),
        ('{"anchor": "a", "positive": "b", "n": ' + "9" * 5000 + "}", "row_invalid_json", None),
        ('{"anchor": "a", "anchor": "b", "positive": "c"}', "duplicate_key", None),
        ('{"anchor": "a", "positive": "b", "score": NaN}', "not_finite", None),
        ('{"anchor": "a", "positive": "b", "score": -Infinity}', "not_finite", None),
        ("[" * 100_000, "json_too_deep", None),
        ('{"a":' * 100_000, "json_too_deep", None),
        ('{"anchor": "a\\u0000", "positive": "b"}', "invalid_unicode", "anchor"),
        ('{"anchor": "a", "positive": "\\ud800"}', "invalid_unicode", "positive"),
        (b'{"anchor": "\xff", "positive": "b"}', "invalid_utf8", None),
        (b'{"anchor": "\xed\xa0\x80", "positive": "b"}', "invalid_utf8", None),
        (PAIR.encode("utf-16"), "invalid_utf8", None),
        ('{"anchor": "a"}', "row_missing_field", "positive"),
        ('{"anchor": null, "positive": "b"}', "row_invalid_type", "anchor"),
        ('{"anchor": "a", "positive": ["b", 3]}', "row_invalid_type", "positive"),
        ('{"anchor": "a", "positive": 3}', "row_invalid_type", "positive"),
        ('{"anchor": "", "positive": "b"}', "row_empty_text", "anchor"),
        ('{"anchor": "a", "positive": " \\u00a0\\n"}', "row_empty_text", "positive"),
        (LABELLED, "row_mixed_format", None),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "row_missing_field", None),
    ],
)
def test_a_bad_row_among_pairs(path, row, code, field):
    assert only_error(report_on(path, PAIR, OTHER_PAIR, row)) == (code, 3, field)


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("true", "row_invalid_type"),
        ("1.0", "row_invalid_type"),
        ("null", "row_invalid_type"),
        ('["x"]', "row_invalid_type"),
        ('""', "row_empty_text"),
        ('"\\udfff"', "invalid_unicode"),
    ],
)
def test_a_bad_label(path, label, code):
    row = f'{{"text": "a", "label": {label}}}'
    assert only_error(report_on(path, *GOOD_LABELS, row)) == (code, 4, "label")


def test_a_line_that_is_too_long_is_refused_and_reading_goes_on(path):
    report = report_on(path, PAIR, PAIR[:-2] + "b" * 10_000_000 + '"}', OTHER_PAIR, "{")
    assert [(error.code, error.row) for error in report.errors] == [
        ("row_too_long", 2),
        ("row_invalid_json", 4),
    ]
    assert report.rows == 2


@pytest.mark.parametrize("extra", [1, 2, 3, MAX_ROW_BYTES])
def test_one_byte_over_the_longest_length_is_too_long(path, extra):
    report = report_on(path, PAIR, b" " * (MAX_ROW_BYTES + extra), OTHER_PAIR)
    assert only_error(report) == ("row_too_long", 2, None)
    assert report.rows == 2


def test_a_long_line_is_never_in_memory_as_a_whole(path):
    path.write_bytes(b"x" * 10_000_000 + b"\n" + PAIR.encode())
    tracemalloc.start()
    validate(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_ROW_BYTES


def test_refused_rows_are_counted_beyond_those_listed(path):
    report = report_on(path, *["{"] * 250)
    assert report.error_count == 250
    assert len(report.errors) == MAX_LISTED_ERRORS
    assert report.summary.startswith("250 of 250 rows can't be used; the first is Row 1:")


def code_of(line: bytes) -> tuple[str, str | None] | None:
    try:
        json_lines.parse(line)
    except RowRefusedError as refusal:
        return refusal.code, refusal.field
    return None


LIKE_JSON = st.lists(
    st.sampled_from([b"{", b"}", b"[", b'"a"', b":", b"1", b",", b" ", b"NaN", b"-Infinity", b"\xff", b"\\u"]),
    min_size=1,
).map(b"".join)


@ANY_BYTES
@given(line=LIKE_JSON.filter(lambda line: not line.isspace()))
def test_a_refused_row_is_of_the_same_kind_however_many_are_refused_before(path, line):
    kind = code_of(line)
    counts = report_on(path, *["{"] * MAX_LISTED_ERRORS, line).counts
    counts["row_invalid_json", None] -= MAX_LISTED_ERRORS
    if kind is not None:
        assert counts.pop(kind) == 1
        assert not any(counts.values())


def test_rows_that_are_each_wrong_in_their_own_way_are_all_counted(path):
    every = [json.dumps({"anchor": "a", f"positive{n}": "b"}) for n in range(3000)]
    report = report_on(path, *every)
    assert report.error_count == sum(report.counts.values()) == 3000
    assert "Rename 'positive0'" in report.errors[0].message
    report = report_on(path, PAIR, *every)
    assert report.counts == {("row_missing_field", "positive"): 3000}


# What messages say


def message_on(path: Path, *lines: str) -> str:
    return report_on(path, *lines).errors[0].message


def test_a_typo_is_recognised(path):
    assert message_on(path, '{"anchor": "a", "postive": "b"}').endswith("Row 1: has no 'positive'. Rename 'postive'.")
    assert "Rename 'Anchor'." in message_on(path, '{"Anchor": "a", "Positive": "b"}')
    assert "Rename 'lable'." in message_on(path, '{"text": "a", "lable": "b"}')


def test_foreign_fields_are_named_with_what_is_expected(path):
    message = message_on(path, '{"prompt": "a", "document": "b"}')
    assert "'prompt' and 'document'" in message
    assert '"anchor"' in message
    assert '"label"' in message
    assert "has no fields" in message_on(path, "{}")


def test_a_field_that_may_be_the_missing_one_is_named(path):
    assert "has no 'pos'. Add it, or rename 'document'" in message_on(path, '{"query": "a", "document": "b"}')


def test_chat_rows_are_told_what_is_expected_instead(path):
    message = message_on(path, '{"messages": [{"role": "user", "content": "hi"}]}')
    assert "chat row" in message
    assert '"anchor"' in message


def test_mixed_formats_name_both(path):
    message = message_on(path, LABELLED, PAIR)
    assert message.startswith("Row 2: has 'anchor' and 'positive', but the rows before have 'text' and 'label'.")


def test_names_of_fields_are_shown_short_and_printable(path):
    row = json.dumps({"x" * 100_000: 1, "\ud800\n": 2})
    message = message_on(path, row)
    assert len(message) < 400
    assert message.isprintable()


# Files that are refused as a whole


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t"])
def test_an_empty_file(path, content):
    assert only_error(report_on(path, content)) == ("empty_file", None, None)


def test_one_pair_repeated_is_too_few(path):
    report = report_on(path, PAIR, PAIR, '{"anchor": "b", "positive": "a"}')
    assert only_error(report) == ("too_few_pairs", None, None)
    assert "same pair" in report.summary


@pytest.mark.parametrize(
    "pairs",
    [["ab", "ac", "ad", "ae", "af"], ["ab", "bc", "ca", "ab"], ["aa", "ab", "ca"], ["ab", "ac", "bc"]],
)
def test_pairs_that_all_share_texts_are_too_few(path, pairs):
    rows = [json.dumps({"anchor": anchor, "positive": positive}) for anchor, positive in pairs]
    assert only_error(report_on(path, *rows)) == ("too_few_pairs", None, None)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), min_size=1, max_size=7))
def test_pairs_suffice_exactly_if_two_have_no_text_in_common(path, pairs):
    rows = [json.dumps({"anchor": anchor, "positive": positive}) for anchor, positive in pairs]
    expected = any(set(one).isdisjoint(other) for one in pairs for other in pairs)
    assert report_on(path, *rows).usable is expected


def test_labels_that_all_differ(path):
    report = report_on(path, LABELLED, '{"text": "b", "label": "y"}')
    assert only_error(report) == ("no_positives", None, "label")


@pytest.mark.parametrize("again", [0, 3, 30, 44])
def test_a_label_may_come_again_however_late(path, monkeypatch, again):
    monkeypatch.setattr(recurrence, "_HELD", 10)
    every = [json.dumps({"text": f"t{n}", "label": n}) for n in range(45)]
    assert only_error(report_on(path, *every)) == ("no_positives", None, "label")
    assert report_on(path, *every, json.dumps({"text": "another", "label": again})).usable


def test_one_label_only_however_often(path, monkeypatch):
    monkeypatch.setattr(recurrence, "_HELD", 10)
    assert only_error(report_on(path, *[LABELLED] * 45)) == ("single_label", None, "label")


def test_one_label_only(path):
    report = report_on(path, LABELLED, LABELLED)
    assert only_error(report) == ("single_label", None, "label")


def test_a_refused_row_comes_before_the_file_as_a_whole(path):
    assert only_error(report_on(path, PAIR, "{"))[0] == "row_invalid_json"


# Any bytes


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(
    st.sampled_from(["anchor", "positive", "score", "text", "label", "messages", "postive"]), JSON_VALUES, max_size=4
).map(lambda row: json.dumps(row).encode())


@ANY_BYTES
@given(lines=st.lists(st.binary(max_size=60) | ROWS | st.sampled_from([PAIR.encode(), LABELLED.encode()])))
def test_no_bytes_make_it_stumble(path, lines):
    path.write_bytes(b"\n".join(lines))
    report = validate(path)
    assert report.usable == (report.summary is None or report.format == "scored_pairs") == (not report.errors)
    assert report.error_count >= len(report.errors)
    for error in report.errors:
        assert error.code in ERROR_CODES
        error.message.encode()
    if report.usable:
        assert len(list(rows(path))) == report.rows > 0
