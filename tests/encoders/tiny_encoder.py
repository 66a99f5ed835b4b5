"""A BERT small enough for any test, in the folder format of a published model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from encoders.bert import Bert, BertShape
from encoders.registry import locate

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TINY_SHAPE = BertShape(
    vocab_size=30522,  # MiniLM's, whose tokenizer it borrows
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)
TINY_MAX_SEQ_LENGTH = 48


def write_tiny_encoder(folder: Path, *, seed: int = 0, pooling: str = "mean") -> Path:
    """Write a random 2-layer BERT of width 32 as a sentence-transformers folder of 4 MB.

    The same seed gives the same weights. Returns `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    minilm = locate(MINILM, None)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json"):
        shutil.copyfile(minilm / name, folder / name)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": TINY_SHAPE.hidden_size, **flags})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": TINY_MAX_SEQ_LENGTH, "do_lower_case": False})
    write_json(folder / "config.json", _config())
    save_file(_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _config() -> dict[str, object]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
        **vars(TINY_SHAPE),
    }


def _weights(seed: int) -> dict[str, torch.Tensor]:
    """Spread wider than a fresh BERT's, so that different texts get clearly different vectors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        names = Bert(TINY_SHAPE).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 + float("LayerNorm.weight" in name)
        for name, tensor in names.items()
    }
