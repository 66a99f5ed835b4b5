from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.workers.data.rows import pair
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training import mining
from workers.training.batches import Batches
from workers.training.mining import MiningConfig, MiningStopped, described, extended, mine

# Two letters decide a text's direction, the third is a detail: d lies between a and b.
ANGLES = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 0.25, "z": np.pi}


class Directions:
    """Texts of one letter and an optional digit as unit vectors: the letter's angle, and a hundredth a digit."""

    def __init__(self, tokenizer) -> None:
        self._letters = {tuple(tokenizer([text])[0].ids): text for text in ALL}
        self.embedded = 0

    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        self.embedded += len(tokens)
        texts = [self._letters[tuple(ids)] for ids in tokens]
        angles = np.array([ANGLES[text[0]] + 0.01 * int(text[1:] or 0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def decode(self, ids: np.ndarray) -> str:
        return self._letters[tuple(ids)]


ALL = [f"{letter}{digit}" for letter in ANGLES for digit in ["", *range(1, 10)]]


@pytest.fixture
def encoder(tiny_encoder_tokenizer) -> Directions:
    return Directions(tiny_encoder_tokenizer)


@pytest.fixture
def tiny_encoder_tokenizer(tiny_folder: Path):
    from encoders.tokenizer import TextTokenizer

    return TextTokenizer.of_folder(tiny_folder)


@pytest.fixture
def prepared(tmp_path: Path, tiny_encoder_tokenizer):
    def make(*rows: Row) -> Prepared:
        return prepare(iter(rows), tmp_path / "data", tokenizer=tiny_encoder_tokenizer, limit=16)

    return make


def texts_of(encoder: Directions, data: Prepared, items: np.ndarray) -> list[str]:
    return [encoder.decode(mining.select(data, np.array([item]))[0]) for item in items]


def test_each_anchor_gets_the_nearest_answer_that_is_not_its_own(encoder, prepared) -> None:
    data = prepared(pair("a", "a4"), pair("b", "b1"), pair("c", "c1"), pair("z", "z1"))
    found = mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0)
    assert texts_of(encoder, data, found.items[:3, 0]) == ["b1", "a4", "b1"]


def test_what_is_as_near_as_the_own_answer_is_left_out_and_counted(encoder, prepared) -> None:
    # To a, a4 and a5 are as near as its own answer a6: both are likely answers too.
    data = prepared(pair("a", "a6"), pair("b", "a4"), pair("c", "a5"), pair("z", "c1"))
    found = mine(encoder, data, MiningConfig(margin=0.95), seed=0, epoch=0)
    assert texts_of(encoder, data, found.items[:1, 0]) == ["c1"]
    assert found.left_out >= 2


def test_an_answer_that_another_row_gives_to_the_same_anchor_is_no_negative(encoder, prepared) -> None:
    data = prepared(pair("a", "a1"), pair("a", "b1"), pair("c", "z1"))
    found = mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0)
    assert texts_of(encoder, data, found.items[:2, 0]) == ["z1", "z1"]


def test_the_anchors_own_text_is_no_negative_of_it(encoder, prepared) -> None:
    data = prepared(pair("a", "a1"), pair("b", "a"), pair("c", "z1"))
    found = mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0)
    assert texts_of(encoder, data, found.items[:1, 0]) == ["z1"]


def test_where_nothing_is_far_enough_a_row_goes_without(encoder, prepared) -> None:
    data = prepared(pair("a", "z1"), pair("b", "b1"))
    found = mine(encoder, data, MiningConfig(), seed=0, epoch=0)
    assert found.items[0, 0] == -1
    assert found.anchors == 1


def test_blocks_and_a_drawn_part_of_the_candidates_are_seeded(encoder, prepared, monkeypatch) -> None:
    monkeypatch.setattr(mining, "_ANCHORS_OF_A_BLOCK", 3)
    monkeypatch.setattr(mining, "MOST_CANDIDATES", 5)
    data = prepared(*(pair(f"{letter}{i}", f"{letter}{i + 4}") for letter in "abc" for i in range(1, 5)))
    config = MiningConfig(per_anchor=2, margin=1.0)
    one, again = (mine(encoder, data, config, seed=1, epoch=2) for _ in range(2))
    other = mine(encoder, data, config, seed=1, epoch=3)
    assert np.array_equal(one.items, again.items)
    assert not np.array_equal(one.items, other.items)
    assert one.candidates == 5


def test_rows_that_are_held_out_are_neither_asked_nor_mined(encoder, prepared) -> None:
    data = prepared(pair("a", "a4"), pair("b", "b1"), pair("c", "c1"), pair("z", "z1")).narrowed(np.array([0, 2, 3]))
    found = mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0)
    assert found.items[1, 0] == -1
    assert found.candidates == 3
    assert "b1" not in texts_of(encoder, data, found.items[[0, 2, 3], 0])


def test_mining_can_be_stopped(encoder, prepared) -> None:
    data = prepared(pair("a", "a1"), pair("b", "b1"))
    with pytest.raises(MiningStopped):
        mine(encoder, data, MiningConfig(), seed=0, epoch=0, should_stop=lambda: True)


def test_negatives_join_the_batch_once_and_answer_nothing(encoder, prepared) -> None:
    data = prepared(*(pair(f"{letter}", f"{letter}1") for letter in "abcdz"))
    found = mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0)
    for batch in Batches(data, batch_size=2, seed=0).epoch(0):
        longer = extended(batch, found.items, data)
        added = slice(len(batch.items), None)
        assert len(np.unique(longer.contents)) == len(longer.contents)
        assert (longer.labels[added] < 0).all()
        assert not longer.asks[added].any()
        wanted = found.items[np.searchsorted(data.row_starts, batch.items[batch.asks], side="right") - 1].ravel()
        fresh = {int(one) for one in data.contents[wanted[wanted >= 0]]} - set(batch.contents.tolist())
        assert set(longer.contents[added].tolist()) == fresh
        assert longer.rows == batch.rows


def test_a_row_without_negatives_adds_none(encoder, prepared) -> None:
    data = prepared(pair("a", "a1"), pair("b", "b1"))
    batch = next(Batches(data, batch_size=2, seed=0).epoch(0))
    assert len(extended(batch, np.full((2, 1), -1), data).items) == 4


def test_it_is_told_what_was_chosen_and_why(encoder, prepared) -> None:
    data = prepared(pair("a", "a4"), pair("b", "b1"), pair("c", "c1"), pair("z", "z1"))
    message = described(mine(encoder, data, MiningConfig(margin=1.0), seed=0, epoch=0), data, encoder.decode)
    sentence, *examples = message.splitlines()
    assert sentence.startswith("Mined hard negatives for 4 of 4 rows among 4 texts: mean cosine")
    assert any(line.startswith("row 1: 'a' is answered by 'a4' (0.999); mined was 'b1'") for line in examples)
