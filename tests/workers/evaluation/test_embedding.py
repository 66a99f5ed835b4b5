from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder
from tests.workers.data.rows import plain
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.evaluation import embedding
from workers.training.losses import NonFiniteEmbeddingsError

TEXTS = [f"the word {'and ' * (number % 7)}{number}" for number in range(30)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"))


@pytest.fixture
def data(encoder: TextEncoder, tmp_path: Path) -> Prepared:
    return prepare(map(plain, TEXTS), tmp_path / "texts", tokenizer=encoder.tokenizer, limit=48)


def test_vectors_are_those_of_the_texts_in_the_order_asked_for(
    encoder: TextEncoder, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_TOKENS_AT_ONCE", 15)
    items = np.array([7, 3, 29, 3, 0])
    batches: list[None] = []

    found = embedding.embed(encoder, data, items, before_batch=lambda: batches.append(None))

    assert found == pytest.approx(encoder.encode([TEXTS[item] for item in items]), abs=1e-5)
    assert len(batches) > 1


def test_weights_that_are_no_good_are_told(encoder: TextEncoder, data: Prepared) -> None:
    with torch.no_grad():
        encoder.transformer.embeddings.word_embeddings.weight.fill_(float("nan"))

    with pytest.raises(NonFiniteEmbeddingsError):
        embedding.embed(encoder, data, np.arange(3), before_batch=lambda: None)
