"""Random models of many architectures, as transformers itself writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from encoders.registry import locate
from tests.encoders.tiny_encoder import MINILM

_SIZES: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": {**_SIZES, "type_vocab_size": 1},
    "xlm-roberta": {**_SIZES, "type_vocab_size": 1, "pad_token_id": 1},
    "camembert": {**_SIZES, "type_vocab_size": 1, "pad_token_id": 1},
    "mpnet": {**_SIZES, "pad_token_id": 1},
    "distilbert": {
        "vocab_size": 30522, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66,
    },
    "electra": {**_SIZES, "embedding_size": 32},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
}  # fmt: skip


def write_model(folder: Path, kind: str, **settings: Any) -> Path:
    """A random model as `save_pretrained` of transformers leaves it, with MiniLM's tokenizer. Returns `folder`."""
    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            # Spread wider than a fresh model's, so that different texts get clearly different vectors.
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(locate(MINILM, None) / name, folder / name)
    return folder
