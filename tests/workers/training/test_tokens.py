from __future__ import annotations

from array import array

import numpy as np
import pytest

from workers.training import tokens as module
from workers.training.datasets import PairDataset
from workers.training.tokens import tokenize

CLS, SEP = 101, 102


def test_tokens_are_those_of_the_encoder(encoder, colours):
    tokens = tokenize(colours, encoder)
    assert tokens.ids.dtype == np.int32
    chosen = np.array([3, 0, 3])
    expected = encoder.tokenize([colours.texts[index] for index in chosen])
    for ids, text in zip(tokens.select(chosen), expected, strict=True):
        np.testing.assert_array_equal(ids, text.ids)


def test_selecting_does_not_copy(tokens):
    (ids,) = tokens.select(np.array([1]))
    assert np.shares_memory(ids, tokens.ids)


@pytest.mark.parametrize("texts_at_once", [1, 5, 24])
def test_chunks_do_not_matter(encoder, colours, tokens, texts_at_once, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", texts_at_once)
    np.testing.assert_array_equal(tokenize(colours, encoder).ids, tokens.ids)


@pytest.mark.parametrize("limit", [3, 5])
def test_a_cut_text_keeps_its_opening_and_closing_token(encoder, colours, limit):
    tokens = tokenize(colours, encoder, max_seq_length=limit)
    whole = tokenize(colours, encoder)
    every = np.arange(24)
    for cut, full in zip(tokens.select(every), whole.select(every), strict=True):
        assert len(cut) == min(limit, len(full))
        assert (cut[0], cut[-1]) == (CLS, SEP)
        np.testing.assert_array_equal(cut[:-1], full[: len(cut) - 1])


def test_texts_that_are_not_read_to_their_end_are_counted(encoder):
    dataset = PairDataset(["short", "word " * 46, "word " * 47], array("i", [0, 1]), array("i", [1, 2]))
    assert tokenize(dataset, encoder).truncated == 1
    assert tokenize(dataset, encoder, max_seq_length=10).truncated == 2


def test_a_limit_beyond_the_encoder_is_the_encoders(encoder):
    dataset = PairDataset(["word " * 100], array("i", [0]), array("i", [0]))
    assert len(tokenize(dataset, encoder, max_seq_length=8192).ids) == encoder.max_seq_length
