from __future__ import annotations

import numpy as np
import pytest

from tests.workers.data.rows import prepared
from workers.data.row import Row
from workers.training.tokens import select


def test_tokens_are_those_of_the_encoder(encoder, colours, data):
    chosen = np.array([3, 0, 3])
    texts = [text for row in colours for text in row.inputs]
    expected = encoder.tokenize([texts[index] for index in chosen])
    for ids, text in zip(select(data, chosen), expected, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, text.ids)


def test_selecting_does_not_copy(data):
    (ids,) = select(data, np.array([1]))
    assert np.shares_memory(ids, data.ids)


def test_vectors_have_no_tokens(tmp_path):
    with pytest.raises(ValueError, match="no tokens"):
        select(prepared(tmp_path / "entry", [Row("vectors", ((1.0,),), "x")]), np.array([0]))
