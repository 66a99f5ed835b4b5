from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.data.rows import labelled, pair, plain, scored, triplet, views, words
from workers.data import conflicts, occurrences, sorted_runs
from workers.data.collisions import expected_in_batch
from workers.data.lengths import Measure
from workers.data.profile import Profile, profile
from workers.data.row import Row
from workers.data.samples import Reservoir

MEASURE = Measure("words", words, max_seq_length=6)


def of(rows: Iterable[Row], measure: Measure | None = None) -> Profile:
    return profile(enumerate(rows, start=1), measure)


def labels_of(*pairs: tuple[str, str]) -> list[Row]:
    return [labelled(text, label) for text, label in pairs]


# Duplicates


def test_rows_and_texts_that_occur_again_are_counted_and_told_by_row() -> None:
    found = of([pair("a", "1"), pair("b", "2"), pair("a", "1"), pair("a", "3"), pair("b", "2"), pair("a", "1")])
    assert found.rows == 6
    assert found.duplicates.rows == 3
    assert [(each.row, each.same_as) for each in found.duplicates.first_rows] == [(3, 1), (5, 2)]
    assert found.duplicates.different_texts == 5  # a, b, 1, 2, 3
    assert found.duplicates.repeated_texts == 4  # all but 3
    assert [(each.row, each.same_as) for each in found.duplicates.first_texts] == [(3, 1), (3, 1), (5, 2), (5, 2)]


def test_a_pair_the_other_way_round_is_another_row() -> None:
    assert of([pair("a", "b"), pair("b", "a")]).duplicates.rows == 0


def test_a_text_twice_in_its_own_row_does_not_stand_in_two_rows() -> None:
    found = of([pair("a", "a"), pair("b", "c")])
    assert found.duplicates.repeated_texts == 0
    assert found.duplicates.different_texts == 3


def test_a_pair_with_another_score_is_another_row() -> None:
    found = of([scored("a", "b", 1), scored("a", "b", 2), scored("a", "b", 1)]).duplicates
    assert (found.rows, found.different_texts) == (1, 2)


def test_scores_have_a_range_and_are_binary_if_they_are_two() -> None:
    two = of([scored(n, n + 1, n % 2) for n in range(9000)]).scores
    more = of([scored(n, n + 1, n / 9000) for n in range(9000)]).scores
    assert two is not None
    assert (two.smallest, two.largest, two.binary) == (0, 1, True)
    assert more is not None
    assert (more.median, more.binary) == (pytest.approx(0.5, abs=1e-3), False)
    late = of([scored(n, n + 1, n % 2 if n < 8192 else 2) for n in range(8200)]).scores
    assert late is not None
    assert not late.binary, "what was the largest may lie between later ones"
    assert of([pair("a", "b")]).scores is None


def test_one_text_under_two_labels_is_no_duplicate_row_but_a_conflict() -> None:
    found = of(labels_of(("a", "x"), ("a", "y"), ("a", "x"), ("b", "x")))
    assert (found.duplicates.rows, found.duplicates.first_rows[0].row) == (1, 3)


def test_examples_are_the_first_twenty_by_row() -> None:
    found = of([pair("a", "b")] * 100)
    assert found.duplicates.rows == 99
    assert len(found.duplicates.first_rows) == 1  # of what is equal, the first place where it occurs again
    many = of([pair(n, f"p{n}") for n in range(50)] * 2)
    assert [each.row for each in many.duplicates.first_rows] == list(range(51, 71))


# Conflicts


def test_conflicts_name_both_rows_and_both_labels() -> None:
    found = of(labels_of(("a", "x"), ("b", "x"), ("a", "x"), ("b", "y"), ("a", "y"), ("a", "z"), ("c", "z")))
    assert found.conflicts is not None
    assert found.conflicts.count == 2
    assert [(each.rows, each.labels) for each in found.conflicts.first] == [((1, 5), ("x", "y")), ((2, 4), ("x", "y"))]


def test_only_the_first_hundred_conflicts_are_listed() -> None:
    found = of(labels_of(*((f"t{n % 300}", str(n // 300)) for n in range(600))))
    assert found.conflicts is not None
    assert found.conflicts.count == 300
    assert [each.rows[0] for each in found.conflicts.first] == list(range(1, 101))


def test_pairs_have_no_conflicts() -> None:
    assert of([pair("a", "b")]).conflicts is None


# Inputs that are equal within their row


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([pair("a", "b"), pair("c", "c"), pair("d", "d")], [2, 3]),
        ([views("a", "b", "a"), views("a", "b")], [1]),
        ([triplet("a", "a", "n"), triplet("a", "b", "n", "n")], [1]),
        ([plain("a")], []),
    ],
)
def test_rows_whose_inputs_are_the_same(rows: list[Row], expected: list[int]) -> None:
    found = of(rows).same_inputs
    assert (found.count, found.first) == (len(expected), expected)


def test_a_hard_negative_that_is_the_positive_or_the_anchor_is_told() -> None:
    found = of([triplet("a", "p", "n"), triplet("b", "q", "m", "q"), triplet("c", "r", "c", "r")]).negative_is_alike
    assert (found.count, found.first) == (2, [2, 3])


# Collisions


def sharing_pairs(rows: Sequence[Row]) -> int:
    """Counted one by one."""
    return sum(not set(one.inputs).isdisjoint(other.inputs) for one, other in combinations(rows, 2))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=24))
def test_pairs_of_rows_that_share_a_text_are_counted_exactly(drawn: list[tuple[int, int]]) -> None:
    rows = [pair(*texts) for texts in drawn]
    assert of(rows).sharing == sharing_pairs(rows)


def test_longer_rows_are_counted_from_above() -> None:
    rows = [triplet("a", "b", "c"), triplet("a", "b", "d"), triplet("x", "y", "z"), triplet("z", "y", "x")]
    assert sharing_pairs(rows) == 2
    assert of(rows).sharing == 3  # the first two share two texts, but are not equal


def test_the_expected_collisions_are_what_batches_have_on_average() -> None:
    rows = [pair(f"q{n}", f"a{n % 30}") for n in range(100)]
    rng = random.Random(0)
    drawn = [sharing_pairs(rng.sample(rows, 16)) for _ in range(3000)]
    expected = expected_in_batch(of(rows).sharing, rows=100, batch_size=16)
    assert expected == pytest.approx(120 * 16 * 15 / (100 * 99))  # by hand: 10 answers of 4 rows, 20 of 3
    assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=0.05)


def test_a_batch_of_everything_has_every_collision() -> None:
    assert expected_in_batch(7, rows=10, batch_size=64) == 7
    assert expected_in_batch(0, rows=1, batch_size=64) == 0


# Labels


def test_label_balance() -> None:
    found = of(labels_of(*((f"text {n}", label) for n, label in enumerate("aaaaabbbcd"))))
    assert found.labels is not None
    balance = found.labels
    assert (balance.labels, balance.once) == (4, 2)
    assert (balance.largest.label, balance.largest.rows, balance.largest_share) == ("a", 5, 0.5)
    assert (balance.smallest.label, balance.smallest.rows) == ("c", 1)
    assert [(each.label, each.rows) for each in balance.top] == [("a", 5), ("b", 3), ("c", 1), ("d", 1)]
    assert balance.batches_with_two == 3  # b, c and d each fill a group of four at most


def test_ten_labels_are_shown_and_long_names_are_cut() -> None:
    found = of(labels_of(*((f"text {n}", f"{n % 12:02}" * 100) for n in range(30))))
    assert found.labels is not None
    assert len(found.labels.top) == 10
    assert found.labels.largest.label == "00" * 39 + "0…"


def test_a_label_beyond_those_whose_names_are_kept_is_told_by_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.data.labels._NAMED", 2)
    found = of(labels_of(("1", "a"), ("2", "b"), ("3", "c"), ("4", "c"), ("5", "c")))
    assert found.labels is not None
    assert found.labels.largest.label == "(the label of row 3)"


# Lengths and scripts


def test_token_lengths_against_the_limit() -> None:
    texts = ["one", "one two", "one two three four", "one two three four five six"]
    found = of([plain(text) for text in texts], MEASURE).token_lengths
    assert found is not None
    # With [CLS] and [SEP]: 3, 4, 6 and 8 tokens, of which 6 are read.
    assert (found.model, found.texts, found.sampled, found.max_seq_length) == ("words", 4, 4, 6)
    assert (found.median, found.p95, found.longest) == (4, 8, 8)
    assert found.texts_cut == 0.25
    assert found.tokens_cut == pytest.approx(2 / 21)
    assert [(each.up_to, each.texts) for each in found.histogram] == [(6, 3), (8, 1)]


def test_without_a_tokenizer_there_are_scripts_but_no_lengths() -> None:
    found = of([plain(text) for text in ("Straße", "привет", "привет, world", "漢字かな", "カタカナ", "12 – 3")])
    assert found.token_lengths is None
    shares = {each.script: round(6 * each.share) for each in found.scripts}
    assert shares == {"Latin": 1, "Cyrillic": 2, "Han": 1, "Kana": 1, "None": 1}


def test_a_large_file_is_measured_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [plain("word " * (n % 10)) for n in range(25_000)]
    found = of(rows, MEASURE).token_lengths
    assert found is not None
    assert (found.texts, found.sampled) == (25_000, 20_000)
    assert found.texts_cut == pytest.approx(0.5, abs=0.02)
    assert of(rows, MEASURE).token_lengths == found


def test_long_texts_are_measured_as_they_come() -> None:
    found = of([plain("word " * 300_000) for _ in range(20)], MEASURE).token_lengths
    assert found is not None
    assert found.longest == 300_002


def test_every_element_is_as_likely_in_a_sample() -> None:
    kept: Counter[int] = Counter()
    for seed in range(1000):
        reservoir: Reservoir[int] = Reservoir(5, seed=seed)
        for start in range(0, 20, 4):
            reservoir.add(range(start, start + 4))
        kept.update(reservoir.kept)
    assert all(190 < kept[element] < 310 for element in range(20)), kept


# Vectors


def test_vectors_have_a_dimension_and_norms() -> None:
    rows = [Row("vectors", ((3.0, 4.0),), "a"), Row("vectors", ((0.0, 1.0),), "b"), Row("vectors", ((0.0, 2.0),), "a")]
    found = of(rows)
    assert found.vectors is not None
    norms = (found.vectors.smallest_norm, found.vectors.median_norm, found.vectors.largest_norm)
    assert (found.vectors.dimension, norms) == (2, (1.0, 2.0, 5.0))
    assert found.scripts == []


def test_equal_vectors_are_duplicates() -> None:
    rows = [Row("vector_pairs", ((1.0, 0.0), (0.0, float(n)))) for n in (1, 2, 1)]
    found = of(rows)
    assert found.duplicates.rows == 1
    assert found.duplicates.different_texts == 3


# More than memory holds


def test_nothing_of_no_rows() -> None:
    found = of([])
    assert (found.rows, found.format, found.labels, found.sharing) == (0, None, None, 0)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60))
def test_sorting_in_parts_changes_nothing(drawn: list[tuple[int, int]]) -> None:
    rows = [labelled(text, label) for text, label in drawn]
    whole = of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.data.profile._CHUNK_ROWS", 7)
        patch.setattr(occurrences, "_HELD", 5)
        patch.setattr(conflicts, "_HELD", 5)
        patch.setattr(sorted_runs.SortedRuns.parts, "__defaults__", (3,))
        assert of(rows) == whole


PROGRAM = """
import resource
from pathlib import Path
from workers.data.profile import profile
from workers.data.row import Row

def rows():
    for number in range(1, 150_001):
        yield number, Row("pairs", (f"question {number} " + 2000 * "a ", f"answer {number % 10_000}"))

[used] = [int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line]
limit = 1024 * used + 200 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = profile(rows())
print(found.rows, found.duplicates.different_texts, found.duplicates.repeated_texts)
"""


def test_six_hundred_megabytes_of_rows_need_less_than_two_hundred(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env={"TMPDIR": str(tmp_path)}
    )
    assert done.stdout.split() == ["150000", "160000", "10000"], done.stderr
    assert list(tmp_path.iterdir()) == []
