from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_schemas.reports import Overlap
from tests.workers.data.rows import labelled, pair, plain, triplet
from workers.data import occurrences, overlap, sorted_runs
from workers.data.overlap import Evaluation, is_in_training
from workers.data.profile import Profiler
from workers.data.row import Row


def between(training: Iterable[Row], evaluation: Iterable[Row], *, identical: bool = False) -> Overlap:
    with Profiler() as profiler, Evaluation() as held:
        for number, row in enumerate(training, start=1):
            profiler.add(number, row)
        for number, row in enumerate(evaluation, start=1):
            held.add(number, row)
        profiler.profile()
        return held.overlap(profiler.contents, identical=identical)


def test_shared_texts_are_counted_and_told_by_both_rows() -> None:
    training = [pair("a", "1"), pair("b", "2"), pair("c", "1")]
    found = between(training, [pair("x", "1"), pair("b", "1"), pair("y", "3"), pair("b", "2")])
    assert (found.texts, found.texts_in_training) == (6, 3)  # x 1 b y 3 2, of which 1 b 2
    assert (found.rows, found.rows_in_training) == (4, 2)
    assert [(each.row, each.same_as) for each in found.first] == [(1, 1), (2, 2), (4, 2)]


def test_a_row_is_found_in_whatever_form_it_stands_in_the_training_file() -> None:
    found = between([triplet("a", "p", "n")], [pair("p", "a")])
    assert found.rows_in_training == 1
    assert between([labelled("a", "x")], [labelled("a", "y"), plain("b")]).rows_in_training == 1


@pytest.mark.parametrize(("of_ten", "refused"), [(0, False), (5, False), (6, True), (10, True)])
def test_more_than_half_of_its_rows_is_too_much(of_ten: int, refused: bool) -> None:
    evaluation = [pair(n, f"p{n}") for n in range(10)]
    found = between([pair(n, f"p{n}") for n in range(of_ten)] + [pair("other", "one")], evaluation)
    assert found.rows_in_training == of_ten
    assert is_in_training(found) == refused


def test_identical_files_are_refused_whatever_is_in_them() -> None:
    assert is_in_training(between([], [], identical=True))
    assert not is_in_training(between([], []))


@pytest.mark.parametrize(("training", "evaluation"), [(0, 3), (3, 0)])
def test_nothing_is_in_nothing(training: int, evaluation: int) -> None:
    found = between([plain(n) for n in range(training)], [plain(n) for n in range(evaluation)])
    assert (found.rows, found.texts, found.texts_in_training, found.first) == (evaluation, evaluation, 0, [])


texts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=25)


@settings(max_examples=60)
@given(texts, texts)
def test_it_is_what_sets_say_when_sorted_in_parts(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    training, evaluation = [pair(*each) for each in one], [pair(*each) for each in other]
    known = {text for row in training for text in row.inputs}
    asked = {text for row in evaluation for text in row.inputs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occurrences, "_HELD", 6)
        patch.setattr(overlap, "_HELD", 6)
        patch.setattr(sorted_runs.SortedRuns.parts, "__defaults__", (4,))
        found = between(training, evaluation)
    assert (found.texts, found.texts_in_training) == (len(asked), len(asked & known))
    assert found.rows_in_training == sum(known.issuperset(row.inputs) for row in evaluation)


def test_temporary_files_go_where_they_are_told_and_are_gone_afterwards(tmp_path: Path) -> None:
    with Profiler(scratch=tmp_path) as profiler, Evaluation(scratch=tmp_path):
        profiler.add(1, plain("a"))
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
