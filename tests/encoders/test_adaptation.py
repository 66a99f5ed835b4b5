from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from encoders.adaptation import Adaptation
from encoders.errors import AdaptationError
from encoders.export import save
from encoders.prompts import Prompts, UnknownPromptError
from encoders.text import TextEncoder
from tests.encoders.random_models import write_model

TEXTS = ["", "a cat", "two cats sat on the mat", "word " * 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", "bert")


def adapted(folder: Path, **wishes: Any) -> TextEncoder:
    encoder = TextEncoder.load(folder)
    Adaptation(**wishes).prepare(encoder, seed=3)
    return encoder


def take_steps(encoder: TextEncoder) -> set[str]:
    """Train a little on nothing in particular. Returns the names of the weights that moved."""
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    tokens = [text.ids for text in encoder.tokenize(TEXTS)]
    target = torch.randn(len(TEXTS), encoder.dimension, generator=torch.Generator().manual_seed(1))
    encoder.train()
    for _ in range(2):
        optimizer.zero_grad()
        encoder(tokens).mul(target).sum().backward()
        optimizer.step()
    encoder.eval()
    return {name for name, weight in encoder.state_dict().items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize(
    "wishes",
    [
        {"train": "lora", "lora_dropout": 0.1},
        {"train": "lora", "freeze_layers": 2, "projection_dim": 16},
        {"train": "projection", "projection_dim": 8},
        {"train": "projection"},
        {"projection_dim": 64, "pooling": "last"},
        {"freeze_layers": 2, "pooling": "cls"},
        {"matryoshka_dims": (8, 32), "prompts": Prompts({"query": "find: ", "document": "text: "})},
    ],
    ids=str,
)
def test_whatever_was_trained_opens_in_sentence_transformers(folder: Path, tmp_path: Path, wishes: Any) -> None:
    encoder = adapted(folder, **wishes)
    assert take_steps(encoder)
    save(encoder, tmp_path / "out", base_folder=folder)
    peer = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    again = TextEncoder.load(tmp_path / "out")
    ours = encoder.encode(TEXTS)
    for theirs in (peer.encode(TEXTS), again.encode(TEXTS)):
        assert theirs.shape == ours.shape == (len(TEXTS), encoder.dimension)
        assert ((ours * theirs).sum(axis=1) > 1 - 1e-5).all()
    for prompt, method in (("query", peer.encode_query), ("document", peer.encode_document)):
        assert ((again.encode(TEXTS, prompt=prompt) * method(TEXTS)).sum(axis=1) > 1 - 1e-5).all()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft, about transformers
@pytest.mark.parametrize("kind", ["bert", "mpnet", "distilbert"])
def test_an_adapter_is_one_of_the_model_in_transformers(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / kind, kind)
    encoder = adapted(folder, train="lora", lora_rank=4)
    before = encoder.encode(TEXTS)
    np.testing.assert_allclose(before, TextEncoder.load(folder).encode(TEXTS), atol=1e-6)
    moved = take_steps(encoder)
    assert moved
    assert all(".lora_" in name for name in moved)
    save(encoder, tmp_path / "out", base_folder=folder)
    base = AutoModel.from_pretrained(folder)
    peer = PeftModel.from_pretrained(base, str(tmp_path / "out/adapter")).eval()
    alone = [torch.tensor(text.ids[None].tolist()) for text in encoder.tokenize(TEXTS)]
    with torch.no_grad():
        means = torch.stack([peer(input_ids=ids).last_hidden_state[0].mean(0) for ids in alone])
    theirs = torch.nn.functional.normalize(means, dim=-1).numpy()
    ours = encoder.encode(TEXTS)
    assert np.abs(ours - before).max() > 1e-3
    assert ((ours * theirs).sum(axis=1) > 1 - 1e-5).all()


def test_a_model_with_an_adapter_beside_it_is_loaded_merged_and_trained_on(folder: Path, tmp_path: Path) -> None:
    first = adapted(folder, train="lora")
    take_steps(first)
    save(first, tmp_path / "first", base_folder=folder)
    second = adapted(tmp_path / "first", train="lora")
    np.testing.assert_allclose(second.encode(TEXTS), first.encode(TEXTS), atol=1e-6)
    take_steps(second)
    save(second, tmp_path / "second", base_folder=tmp_path / "first")
    np.testing.assert_allclose(TextEncoder.load(tmp_path / "second").encode(TEXTS), second.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "distilbert"])
@pytest.mark.parametrize("count", [1, 3])
def test_first_layers_stay_as_they_are(tmp_path: Path, kind: str, count: int) -> None:
    encoder = adapted(write_model(tmp_path / kind, kind), freeze_layers=count, projection_dim=16)
    moved = take_steps(encoder)
    layers = {int(name.split("layer.")[1].split(".")[0]) for name in moved if ".layer." in name}
    assert layers == set(range(count, 3))
    assert not any("embeddings" in name or "relative_attention_bias" in name for name in moved)
    assert "projection.linear.weight" in moved


def test_a_frozen_encoder_has_neither_dropout_nor_a_graph(folder: Path) -> None:
    encoder = adapted(folder, train="projection", projection_dim=8)
    encoder.train()
    tokens = [text.ids for text in encoder.tokenize(TEXTS)]
    assert torch.equal(encoder(tokens), encoder(tokens))
    encoder(tokens).sum().backward()
    assert {name for name, each in encoder.named_parameters() if each.grad is not None} == {"projection.linear.weight"}


def test_a_projection_as_wide_as_the_encoder_begins_by_changing_nothing(folder: Path) -> None:
    plain, projected = TextEncoder.load(folder).encode(TEXTS), adapted(folder, train="projection").encode(TEXTS)
    np.testing.assert_allclose(projected @ projected.T, plain @ plain.T, atol=1e-5)


def test_a_seed_repeats_what_is_drawn(folder: Path) -> None:
    for wishes in ({"train": "lora"}, {"projection_dim": 16}):
        first, again = adapted(folder, **wishes).state_dict(), adapted(folder, **wishes).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_padded_model_takes_a_lora_too_and_keeps_its_other_weights(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "distilbert", "distilbert")
    encoder = adapted(folder, train="lora")
    take_steps(encoder)
    save(encoder, tmp_path / "out", base_folder=folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if "_lin.weight" in name or ("ffn.lin" in name and name.endswith("weight"))
    }


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"freeze_layers": 4}, "3 layers"),
        ({"freeze_layers": 3}, "left to be trained"),
        ({"train": "lora", "freeze_layers": 3}, "freeze fewer"),
        ({"matryoshka_dims": (8, 64)}, "32"),
    ],
)
def test_what_the_model_cannot_do_is_refused(folder: Path, wishes: Any, says: str) -> None:
    with pytest.raises(AdaptationError, match=says):
        adapted(folder, **wishes)


def test_a_second_projection_is_refused(folder: Path, tmp_path: Path) -> None:
    save(adapted(folder, projection_dim=16), tmp_path / "out", base_folder=folder)
    assert adapted(tmp_path / "out", projection_dim=16).dimension == 16
    with pytest.raises(AdaptationError, match="leave projection_dim out"):
        adapted(tmp_path / "out", projection_dim=8)


def test_prompts_are_found_by_what_they_are_for() -> None:
    prompts = Prompts({"query": "query: ", "passage": "passage: ", "topic": "topic: "}, default="query")
    assert [prompts.of(name) for name in (None, "query", "document", "topic")] == [
        "query: ", "query: ", "passage: ", "topic: ",
    ]  # fmt: skip
    assert Prompts().of("document") == ""
    with pytest.raises(UnknownPromptError, match="document, passage, query, topic"):
        prompts.of("code")
    assert Prompts().fingerprint("t") == "t"
    assert len({Prompts({"query": text}).fingerprint("t") for text in "ab"} | {"t"}) == 3
