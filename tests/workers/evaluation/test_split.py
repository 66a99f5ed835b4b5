"""What is held out, and that nothing of it is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.workers.data.rows import labelled, pair, plain, prepared, scored, triplet, views
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.evaluation.groups import groups_of
from workers.evaluation.questions import FEWEST_DOCUMENTS, NoQuestionsError, questions_of
from workers.evaluation.split import carved, given
from workers.training.batches import Batches

RNG = np.random.default_rng(0)
#: Anchors and positives out of few texts, so that rows share them.
SHARING = [pair(f"q{a}", f"d{b}") for a, b in RNG.integers(400, size=(300, 2))]
TRIPLETS = [triplet(f"q{a}", f"d{a}", f"n{b}", f"n{b + 1}") for a, b in enumerate(RNG.integers(400, size=200))]
VIEWS = [views(*(f"v{a} {b}" for b in range(2 + a % 3))) for a in range(150)]
LABELLED = [labelled(f"t{a % 190}", "few" if a < 3 else "abcd"[a % 4]) for a in range(200)]


def used_contents(data: Prepared) -> set[int]:
    return {int(c) for row in data.rows for c in data.contents[data.row_starts[row] : data.row_starts[row + 1]]}


def slow_groups(data: Prepared) -> list[int]:
    """By merging sets."""
    group = list(range(len(data)))
    holders: dict[int, int] = {}
    for row in range(len(data)):
        for content in data.contents[data.row_starts[row] : data.row_starts[row + 1]].tolist():
            if content in holders:
                old, new = group[row], group[holders[content]]
                group = [new if each == old else each for each in group]
            holders[content] = row
    return group


def test_groups_are_connected_components(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", SHARING)
    ours, theirs = groups_of(data, data.rows), slow_groups(data)

    assert len(set(zip(ours.tolist(), theirs, strict=True))) == len(set(theirs)) == ours.max() + 1


def test_a_long_chain_is_one_group(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [pair(a, a + 1) for a in RNG.permutation(500)])

    assert groups_of(data, data.rows).max() == 0


@pytest.mark.parametrize("rows", [SHARING, TRIPLETS, VIEWS, LABELLED], ids=["pairs", "triplets", "views", "labels"])
def test_batches_hold_every_other_row_and_no_text_of_the_split(tmp_path: Path, rows: list[Row]) -> None:
    data = prepared(tmp_path / "p", rows)
    split = carved([data], 0.1, seed=0)
    assert split is not None
    assert 0.03 * len(rows) <= split.evaluation.row_count <= 0.15 * len(rows)
    assert split.evaluation.row_count + split.training[0].row_count == len(rows)

    drawn = {int(c) for batch in Batches(split.training[0], batch_size=8, seed=0).epoch(0) for c in batch.contents}

    assert not drawn & used_contents(split.evaluation)
    assert len(used_contents(split.training[0]) - drawn) <= 0.1 * len(drawn), "a batch can't hold all: texts are shared"


def test_both_sides_have_pairs_of_a_label_and_a_small_one_stays_with_training(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", LABELLED)
    split = carved([data], 0.2, seed=0)
    assert split is not None
    assert data.labels is not None

    held_out = np.bincount(data.labels[split.evaluation.rows], minlength=len(data.label_names))
    kept = np.bincount(data.labels[split.training[0].rows], minlength=len(data.label_names))
    assert set(np.flatnonzero(held_out == 1)) == set()
    assert (kept >= 2).all()
    assert held_out[data.label_names.index("few")] == 0


def test_no_training_file_holds_a_text_of_the_split(tmp_path: Path) -> None:
    files = [prepared(tmp_path / "p", SHARING), prepared(tmp_path / "q", [*LABELLED, *(labelled("q7", "a"),) * 2])]
    files.append(prepared(tmp_path / "r", [pair(f"q{a}", f"elsewhere {a}") for a in range(400)]))
    split = carved(files, 0.1, seed=0)
    assert split is not None
    held_out = used_contents(split.evaluation)

    assert not any(held_out & used_contents(data) for data in split.training)
    asked = {row.inputs[0] for row in (SHARING[row] for row in split.evaluation.rows)}
    assert split.training[2].row_count == 400 - len(asked), "the other rows stay"
    assert [data.fingerprint == whole.fingerprint for data, whole in zip(split.training, files, strict=True)][
        2
    ] is False


def test_too_little_left_of_another_file_makes_no_split(tmp_path: Path) -> None:
    assert carved([prepared(tmp_path / name, SHARING[:size]) for name, size in (("p", 300), ("q", 1))], 0.1, 0) is None


def test_the_split_is_the_seeds_and_its_id_the_contents(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", SHARING)
    one, again, other = (carved([data], 0.1, seed) for seed in (0, 0, 1))
    assert None not in (one, again, other)
    assert one.id == again.id != other.id

    turned = given([data], prepared(tmp_path / "q", [SHARING[row] for row in one.evaluation.rows[::-1]]))
    assert turned.id == one.id


def test_the_id_of_scored_pairs_is_that_of_their_scores_too(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", SHARING)
    rows = [scored(f"s{n}", f"t{n}", n / 4) for n in range(9)]
    files = {"q": rows, "r": rows[::-1], "s": [*rows[:8], scored("s8", "t8", 9)]}
    one, turned, other = (given([data], prepared(tmp_path / name, each)).id for name, each in files.items())
    assert one == turned != other


def test_rows_that_are_all_connected_are_not_split(tmp_path: Path) -> None:
    assert carved([prepared(tmp_path / "p", [pair("hub", a) for a in range(200)])], 0.1, seed=0) is None


def test_queries_know_all_their_answers_and_distractors_are_none_of_them(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", SHARING)
    split = carved([data], 0.1, seed=0)
    assert split is not None
    asked = questions_of(split.evaluation, split.training[0], seed=0)

    known: dict[str, set[str]] = {}
    for row in split.evaluation.rows:
        question, answer = SHARING[row].inputs
        known.setdefault(str(question), set()).add(str(answer))
    found: dict[str, set[str]] = {}
    for query, document in zip(asked.asking, asked.answers, strict=True):
        text = SHARING[asked.queries[query] // 2].inputs[0]
        found.setdefault(str(text), set()).add(str(SHARING[asked.documents[document] // 2].inputs[1]))
    assert found == known
    assert 0 < len(asked.distractors) <= FEWEST_DOCUMENTS
    assert not set(data.contents[asked.distractors]) & used_contents(split.evaluation)


def test_hard_negatives_are_searched_among_and_are_no_answers(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [triplet("q1", "d1", "n1"), triplet("q2", "d2", "n2", "d1")])
    asked = questions_of(data, data, seed=0)

    assert len(asked.documents) == 4
    assert len(asked.answers) == 2


def test_plain_texts_ask_nothing(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [plain(a) for a in range(20)])
    with pytest.raises(NoQuestionsError, match="texts"):
        questions_of(data, data, seed=0)
