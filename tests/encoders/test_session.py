"""onnxruntime's forward gives the vectors of torch's, in batches of any shape."""

import numpy as np
import pytest

from encoders.projection import Projection
from encoders.session import Session, groups, operations
from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder

LENGTHS = [3, 40, 7, 12, 12, 2, 33]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    write_tiny_encoder(folder)
    return TextEncoder.load(folder)


def _texts(encoder: TextEncoder, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size = encoder.tokenizer.vocabulary_size
    return [rng.integers(0, size, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], LENGTHS])
def test_vectors_are_those_of_torch(encoder: TextEncoder, pooling: str, lengths: list[int]) -> None:
    texts = _texts(encoder, lengths)
    encoder.pooling = pooling
    assert np.abs(Session(encoder, threads=1).embed(texts) - encoder.embed(texts)).max() < 2e-6


def test_a_projection_is_part_of_it(encoder: TextEncoder) -> None:
    texts = _texts(encoder, LENGTHS)
    projection = Projection(encoder.dimension, 5, bias=True, activation="torch.nn.modules.activation.Tanh")
    projected = TextEncoder(
        encoder.transformer, encoder.tokenizer, pooling="mean", dropout=encoder.dropout, projection=projection
    ).eval()
    found = Session(projected, threads=1).embed(texts)
    assert found.shape == (len(texts), 5)
    assert np.abs(found - projected.embed(texts)).max() < 2e-6


def test_a_text_has_the_same_vector_alone_and_in_a_batch(encoder: TextEncoder) -> None:
    texts = _texts(encoder, LENGTHS)
    session = Session(encoder, threads=2)
    alone = np.concatenate([session.embed([text]) for text in texts])
    assert np.abs(session.embed(texts) - alone).max() < 1e-6


def test_groups_hold_every_text_once_and_waste_little() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 500).clip(2, 512)
    found = list(groups(lengths, 384))
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    for group in found:
        useful, padding = operations(lengths[group], 384)
        assert padding[-1] <= 0.1 * useful[-1]
    assert len(found) < 12
