"""Encoders compared by pairs that have scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from encoders.prompts import Prompts
from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder
from tests.workers.data.rows import pair, prepared, scored
from workers.data.preparation import prepare
from workers.data.row import Row
from workers.evaluation import scored_pairs
from workers.evaluation.metrics import metrics_of
from workers.evaluation.plan import split_of
from workers.evaluation.questions import NoQuestionsError
from workers.evaluation.scored_pairs import MeasuredPairs, ScoredEvaluator, scored_pairs_of
from workers.evaluation.split import given
from workers.training.batches import Batches, NoBatchError

#: Texts recur, on either side.
ROWS = [scored(f"the word {n % 7}", f"the word {n * n % 11} again", n * 37 % 50 / 10) for n in range(40)]
ROWS += [scored("the word 3 again", "the word 3", 5.0), scored("the word 1", "the word 1", 5.0)]
JUDGED = [scored(f"a{n}", f"b{n}", n % 2) for n in range(8)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"))


def evaluator(folder: Path, rows: Sequence[Row], **arguments: Any) -> ScoredEvaluator:
    training = prepared(folder / "training", [pair(n, -n) for n in range(1, 9)])
    data = prepared(folder / "scored", rows) if not arguments else prepare(iter(rows), folder / "scored", **arguments)
    return ScoredEvaluator(given([training], data), seed=0)


def measured(*cosines: float) -> MeasuredPairs:
    return MeasuredPairs(np.array(cosines, dtype=np.float64))


def test_an_encoder_is_measured_by_its_cosines_with_the_scores(tmp_path: Path, encoder: TextEncoder) -> None:
    judge = evaluator(tmp_path, ROWS, tokenizer=encoder.tokenizer, limit=48)
    one, other = (encoder.encode([str(row.inputs[place]) for row in ROWS]) for place in (0, 1))
    cosines = (one * other).sum(axis=1)

    found = judge.measure(encoder)

    assert found.cosines == pytest.approx(cosines, abs=2e-6)
    expected = spearmanr(found.cosines, [row.score for row in ROWS]).statistic
    assert judge.score(found, "spearman") == pytest.approx(expected)
    assert judge.told_split("file-1").model_dump(include={"file", "rows", "queries", "documents"}) == {
        "file": "file-1", "rows": 42, "queries": 42, "documents": 0
    }  # fmt: skip
    with pytest.raises(KeyError):
        judge.score(found, "mrr")


def test_a_text_on_both_sides_is_read_with_the_prompt_of_each(tmp_path: Path, encoder: TextEncoder) -> None:
    prompts = Prompts(texts={"query": "find: ", "document": "text: "})
    judge = evaluator(tmp_path, ROWS, tokenizer=encoder.tokenizer, limit=48, prompts=prompts)

    found = judge.measure(encoder)

    vectors = encoder.encode(["find: the word 1", "text: the word 1"])
    assert found.cosines[-1] == pytest.approx(vectors[0] @ vectors[1], abs=2e-6)
    assert found.cosines[-1] < 0.999


def test_two_scores_are_told_apart_and_others_ordered(tmp_path: Path) -> None:
    assert metrics_of(prepared(tmp_path / "p", ROWS)) == ("spearman",)
    judge = evaluator(tmp_path, JUDGED)
    assert judge.metrics == ("auc", "spearman")
    base = measured(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    tuned = measured(0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9)

    compared = judge.compare(base, tuned)

    assert [each.name for each in compared] == ["auc", "spearman"]
    # Of 16 pairs of a high and a low one, base has 4 + 3 + 2 + 1 in order.
    assert (compared[0].base, compared[0].tuned) == (pytest.approx(10 / 16), 1)
    assert all(each.low <= each.difference <= each.high for each in compared)


def test_equal_encoders_differ_by_nothing_for_sure(tmp_path: Path) -> None:
    judge = evaluator(tmp_path, JUDGED)
    same = measured(*range(8))
    assert [(each.low, each.high) for each in judge.compare(same, same)] == [(0, 0)] * 2


def test_what_gained_came_closer_to_the_place_that_its_score_gives_it(tmp_path: Path) -> None:
    rows = [scored("a", "b", 4), scored("c", "d", 3), scored("e", "f", 2), scored("g", "h", 1)]
    judge = evaluator(tmp_path, rows)
    base, tuned = measured(0.1, 0.8, 0.7, 0.9), measured(0.9, 0.8, 0.1, 0.2)

    gained, lost = judge.most_changed(base, tuned, 5)

    assert (list(gained), list(lost)) == ([0, 3], [2])
    first = judge.example(gained[0], rows[0], base, tuned)
    assert (first.query, first.answer, first.score) == ("a", "b", 4)
    assert (first.place_before, first.place_after, first.place_by_score) == (4, 1, 1)


def test_the_histogram_divides_pairs_halfway_between_the_scores(tmp_path: Path) -> None:
    judge = evaluator(tmp_path, [scored("a", "b", -1), scored("c", "d", 2), scored("e", "f", 2.5), scored("g", "h", 5)])
    drawn = judge.histogram(measured(0, 0, 0, 0), measured(-0.88, -0.88, 0.88, 0.88))

    assert drawn.divided_at == 2
    assert (sum(drawn.right_before), sum(drawn.wrong_before)) == (2, 2)
    assert (drawn.edges[2], drawn.edges[37]) == (-0.9, 0.85)
    assert (drawn.wrong_after[2], drawn.right_after[37]) == (2, 2)


def test_scores_that_nearly_touch_are_told_apart(tmp_path: Path) -> None:
    low = 1.0
    high = float(np.nextafter(low, 2))
    judge = evaluator(tmp_path, [scored(f"a{n}", f"b{n}", high if n % 2 else low) for n in range(8)])
    assert judge.score(measured(*range(8)), "auc") == pytest.approx(10 / 16)


def test_an_encoder_that_gives_all_texts_one_vector_orders_nothing(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = evaluator(tmp_path, ROWS, tokenizer=encoder.tokenizer, limit=48)
    rng = np.random.default_rng(0)

    def nearly_one_vector(_encoder: object, _data: object, items: np.ndarray, **_: object) -> np.ndarray:
        vectors = np.full((len(items), 32), 32**-0.5) + rng.normal(scale=1e-8, size=(len(items), 32))
        return vectors.astype(np.float32)

    monkeypatch.setattr(scored_pairs, "embed", nearly_one_vector)
    assert judge.score(judge.measure(encoder), "spearman") == 0


def test_pairs_that_share_a_text_are_drawn_together_unless_all_do(tmp_path: Path) -> None:
    apart = prepared(tmp_path / "p", [scored("a", "b", 1), scored("c", "a", 2), scored("d", "e", 3)])
    connected = prepared(tmp_path / "q", [scored("a", n, n) for n in range(5)])

    assert scored_pairs_of(apart, seed=0).groups.tolist() == [0, 0, 1]
    assert len(set(scored_pairs_of(connected, seed=0).groups)) == 5


def test_of_many_pairs_a_sample_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored_pairs, "MOST_ROWS", 10)
    data = prepared(tmp_path / "p", ROWS)
    one, again, other = (scored_pairs_of(data, seed=seed) for seed in (0, 0, 1))

    assert one.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    assert len(one.rows) == 10
    assert one.scores.tolist() == [ROWS[row].score for row in one.rows]


def test_a_sample_of_one_score_compares_nothing(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [scored(n, n + 100, 1.0) for n in range(5)])
    with pytest.raises(NoQuestionsError, match="one score"):
        scored_pairs_of(data, seed=0)


def test_scored_pairs_make_no_batch(tmp_path: Path) -> None:
    with pytest.raises(NoBatchError, match="validation_file"):
        Batches(prepared(tmp_path / "p", ROWS), batch_size=4, seed=0)


def test_nothing_is_carved_out_beside_scored_pairs(tmp_path: Path) -> None:
    training, data = prepared(tmp_path / "t", [pair(n, -n) for n in range(1, 200)]), prepared(tmp_path / "p", ROWS)
    split = split_of([training], data, 0.1, seed=0)
    assert split is not None
    assert split.training[0].row_count == len(training)
    assert split.evaluation is data
