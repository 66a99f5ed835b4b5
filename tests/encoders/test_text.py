from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from encoders.bert import Dropout
from encoders.encoder import Encoder
from encoders.errors import NonFiniteWeightsError, UnsafeFolderError, UnsupportedArchitectureError
from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import TINY_MAX_SEQ_LENGTH, write_json, write_tiny_encoder

TEXTS = [
    "",
    "How do I reset my password?",
    "Déjà vu — naïve café, ÅNGSTRÖM",
    "東京 is 🗼 nice",
    "a",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "word " * 400,
    "An invoice that nobody has paid is still an invoice. " * 60,
    "How do I reset my password?",
    "  leading and trailing \n\t whitespace  ",
]


def test_minilm_gives_what_sentence_transformers_gives(minilm: TextEncoder, minilm_folder: Path) -> None:
    expected = SentenceTransformer(str(minilm_folder), device="cpu").encode(TEXTS)
    found = minilm.encode(TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 384))
    assert np.abs(found - expected).max() < 2e-6
    assert ((found * expected).sum(axis=1) > 1 - 1e-5).all()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_either_pooling_is_that_of_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    folder = write_tiny_encoder(tmp_path / "tiny", pooling=pooling)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.abs(TextEncoder.load(folder).encode(TEXTS) - expected).max() < 2e-6


def test_a_folder_saved_by_sentence_transformers_opens(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    SentenceTransformer(str(tiny_folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    again = TextEncoder.load(tmp_path / "saved")
    assert again.max_seq_length == TINY_MAX_SEQ_LENGTH
    np.testing.assert_array_equal(again.encode(TEXTS), tiny.encode(TEXTS))


def test_a_text_alone_is_the_text_in_a_batch(minilm: TextEncoder) -> None:
    together = minilm.encode(TEXTS)
    alone = np.concatenate([minilm.encode([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-6


def test_vectors_have_length_one_and_the_order_of_the_texts(tiny: TextEncoder) -> None:
    forwards, backwards = tiny.encode(TEXTS), tiny.encode(TEXTS[::-1])
    np.testing.assert_allclose(np.linalg.norm(forwards, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(forwards, backwards[::-1], atol=1e-6)


def test_the_token_budget_changes_batches_and_not_vectors(tiny: TextEncoder) -> None:
    done: list[int] = []
    found = tiny.encode(TEXTS, tokens_per_batch=16, progress=done.append)
    np.testing.assert_allclose(found, tiny.encode(TEXTS), atol=1e-6)
    assert done == sorted(done)
    assert len(done) > 3
    assert done[-1] == len(TEXTS)


def test_no_texts_are_no_vectors(tiny: TextEncoder) -> None:
    assert tiny.encode([]).shape == (0, 32)
    assert tiny([]).shape == (0, 32)


def test_no_texts_give_zeros_to_the_parameters_that_texts_give_gradients_to(tiny: TextEncoder) -> None:
    tiny.train()
    tiny([np.array([2, 5, 3])]).sum().backward()
    moved = {name for name, parameter in tiny.named_parameters() if parameter.grad is not None}
    tiny.zero_grad()
    vectors = tiny([])
    assert vectors.shape == (0, tiny.dimension)
    vectors.sum().backward()
    gradients = {name: parameter.grad for name, parameter in tiny.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == moved
    assert not any(gradient.any() for gradient in gradients.values())


def test_no_texts_have_the_type_of_the_weights_and_no_gradient_where_these_are_frozen(tiny: TextEncoder) -> None:
    frozen = tiny.double().requires_grad_(False)([])
    assert (frozen.dtype, frozen.requires_grad) == (torch.float64, False)


def test_the_text_encoder_is_an_encoder(tiny: TextEncoder) -> None:
    encoder: Encoder[str] = tiny
    assert encoder.encode(["text"]).shape == (1, encoder.dimension)
    assert (tiny.dimension, tiny.max_seq_length, tiny.device) == (
        32,
        TINY_MAX_SEQ_LENGTH,
        torch.device("cpu"),
    )


def test_dropout_is_for_training_and_never_for_embedding(tiny: TextEncoder) -> None:
    torch.manual_seed(0)
    tokens = [tokenized.ids for tokenized in tiny.tokenize(TEXTS)]
    still, embedded = tiny(tokens), tiny.embed(tokens)
    tiny.train()
    assert not torch.allclose(tiny(tokens), tiny(tokens))
    np.testing.assert_array_equal(tiny.embed(tokens), embedded)
    assert tiny.training
    tiny.dropout = Dropout()
    assert torch.equal(tiny(tokens), still)


def test_dropout_is_as_the_configuration_says(tiny: TextEncoder, tiny_folder: Path) -> None:
    assert tiny.dropout == Dropout(hidden=0.1, attention=0.1)
    change_config(tiny_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.25)
    assert TextEncoder.load(tiny_folder).dropout == Dropout(hidden=0.0, attention=0.25)


def test_a_step_on_the_loss_moves_every_weight_in_use(tiny: TextEncoder) -> None:
    tiny.train()
    tokens = [tokenized.ids for tokenized in tiny.tokenize(["a cat sat", "a dog ran away"])]
    tiny(tokens).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in tiny.parameters())


def test_half_precision_weights_are_read_as_float32(tiny: TextEncoder, tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    again = TextEncoder.load(tiny_folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert ((again.encode(TEXTS) * tiny.encode(TEXTS)).sum(axis=1) > 0.999).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(tiny_folder: Path, value: float) -> None:
    path = tiny_folder / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(weights, path)
    with pytest.raises(NonFiniteWeightsError, match=r"layer\.1\.output\.dense"):
        TextEncoder.load(tiny_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ],
)
def test_other_architectures_are_refused_by_what_is_supported(tiny_folder: Path, change: dict[str, object]) -> None:
    change_config(tiny_folder, **change)
    with pytest.raises(UnsupportedArchitectureError, match="supported is"):
        TextEncoder.load(tiny_folder)


def test_other_poolings_are_refused(tiny_folder: Path) -> None:
    write_json(tiny_folder / "1_Pooling/config.json", {"pooling_mode": "max"})
    with pytest.raises(UnsupportedArchitectureError, match="max"):
        TextEncoder.load(tiny_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 5},
        {"hidden_size": 0},
        {"vocab_size": 10**12},
        {"vocab_size": 1000},
        {"hidden_dropout_prob": 1.5},
        {"layer_norm_eps": "small"},
    ],
)
def test_sizes_that_the_weights_do_not_bear_out_are_refused(tiny_folder: Path, change: dict[str, object]) -> None:
    change_config(tiny_folder, **change)
    with pytest.raises(UnsafeFolderError):
        TextEncoder.load(tiny_folder)


def test_a_tokenizer_that_is_none_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsafeFolderError, match="no tokenizer"):
        TextEncoder.load(tiny_folder)


def test_a_pickle_is_refused_before_anything_is_read(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFolderError, match="pytorch_model"):
        TextEncoder.load(tiny_folder)


def change_config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | change)
