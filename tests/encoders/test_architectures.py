from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from encoders.errors import MissingExtraError, UnsafeFolderError, UnsupportedArchitectureError
from encoders.export import save
from encoders.registry import available
from encoders.text import TextEncoder
from tests.encoders.random_models import write_model
from tests.encoders.tiny_encoder import write_json

TEXTS = ["a", "two cats sat on the mat", "", "word " * 90, "a dog", "one two three four five six seven eight nine"]
PACKED = ["bert", "roberta", "xlm-roberta", "camembert", "mpnet"]
PADDED = ["distilbert", "electra", "qwen3"]


def means_of_transformers(folder: Path, encoder: TextEncoder, *, grad: bool = False) -> tuple[Any, torch.Tensor]:
    """Each text alone through the model as transformers has it: no padding that could hide a mistake."""
    model = AutoModel.from_pretrained(folder).eval()
    with torch.set_grad_enabled(grad):
        alone = [torch.tensor(text.ids[None].tolist()) for text in encoder.tokenize(TEXTS)]
        return model, torch.stack([model(ids).last_hidden_state[0].mean(0) for ids in alone])


@pytest.mark.parametrize("kind", [*PACKED, *PADDED])
def test_vectors_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    encoder = TextEncoder.load(write_model(tmp_path / kind, kind))
    assert encoder.packs == (kind in PACKED)
    _, means = means_of_transformers(tmp_path / kind, encoder)
    expected = torch.nn.functional.normalize(means, dim=-1).numpy()
    assert np.abs(encoder.encode(TEXTS) - expected).max() < 5e-6


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert"])
def test_gradients_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    encoder = TextEncoder.load(write_model(tmp_path / kind, kind))
    target = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(1))
    encoder([text.ids for text in encoder.tokenize(TEXTS)]).mul(target).sum().backward()
    peer, means = means_of_transformers(tmp_path / kind, encoder, grad=True)
    means.mul(target).sum().backward()
    expected = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    found = {name.removeprefix("model."): parameter.grad for name, parameter in encoder.transformer.named_parameters()}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert", "qwen3"])
def test_what_is_exported_opens_in_sentence_transformers(tmp_path: Path, kind: str) -> None:
    encoder = TextEncoder.load(write_model(tmp_path / kind, kind))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.01)
    save(encoder, tmp_path / "out", base_folder=tmp_path / kind)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    ours = encoder.encode(TEXTS)
    assert ((ours * theirs).sum(axis=1) > 1 - 1e-5).all()
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "out").encode(TEXTS), ours)


def test_padding_is_as_good_as_packing(tmp_path: Path) -> None:
    """A BERT with another activation goes the long way; with the usual one both ways are open."""
    folder = write_model(tmp_path / "bert", "bert")
    packed = TextEncoder.load(folder).encode(TEXTS)
    change_config(folder, hidden_act="gelu_python")  # the same function under a name that isn't ours
    padded = TextEncoder.load(folder)
    assert not padded.packs
    assert np.abs(padded.encode(TEXTS) - packed).max() < 5e-6


def test_a_model_with_a_head_is_read_without_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "roberta", "roberta")
    expected = TextEncoder.load(folder).encode(TEXTS)
    weights = {f"roberta.{name}": weight for name, weight in load_file(folder / "model.safetensors").items()}
    old = "roberta.embeddings.LayerNorm.weight"
    weights["roberta.embeddings.LayerNorm.gamma"] = weights.pop(old)
    save_file({**weights, "lm_head.bias": torch.ones(3)}, folder / "model.safetensors")
    encoder = TextEncoder.load(folder)
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    save(encoder, tmp_path / "out", base_folder=folder)
    assert "lm_head.bias" not in load_file(tmp_path / "out/model.safetensors")
    assert "pooler.dense.weight" in load_file(tmp_path / "out/model.safetensors")
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "out").encode(TEXTS), expected)


def test_positions_that_are_never_used_are_no_length(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "acme/xlm", "xlm-roberta")
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1e30})
    assert TextEncoder.load(folder).max_seq_length == 64
    assert available(tmp_path)["acme/xlm"].max_seq_length == 64


def test_a_plain_folder_is_a_base_model_of_its_own_width(tmp_path: Path) -> None:
    write_model(tmp_path / "acme/small", "distilbert")
    model = available(tmp_path)["acme/small"]
    assert (model.dimension, model.max_seq_length) == (32, 66)


def test_dropout_of_a_padded_model_is_for_training_only(tmp_path: Path) -> None:
    encoder = TextEncoder.load(write_model(tmp_path / "distilbert", "distilbert"))
    tokens = [text.ids for text in encoder.tokenize(TEXTS)]
    still = encoder.embed(tokens)
    encoder.train()
    assert not torch.equal(encoder(tokens), encoder(tokens))
    np.testing.assert_array_equal(encoder.embed(tokens), still)
    assert encoder.training


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "distilbert", "distilbert")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"likeness\[transformers\]"):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model_type": "no-such-model"}, UnsupportedArchitectureError, "no-such-model"),
        ({"model_type": "t5"}, UnsupportedArchitectureError, "no encoder of texts"),
        ({"model_type": "vit"}, UnsupportedArchitectureError, "no encoder of texts"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, UnsafeFolderError, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, UnsafeFolderError, "auto_map"),
        ({"n_layers": 4}, UnsafeFolderError, "does not fit"),
        ({"dim": 64}, UnsafeFolderError, "does not fit"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str) -> None:
    folder = write_model(tmp_path / "distilbert", "distilbert")
    change_config(folder, **change)
    with pytest.raises(error, match=says):
        TextEncoder.load(folder)


def test_infinite_weights_of_a_padded_model_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "distilbert", "distilbert")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.layer.0.ffn.lin1.bias"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="NaN or infinity"):
        TextEncoder.load(folder)


def change_config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | change)
