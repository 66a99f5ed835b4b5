"""A text encoder that nobody has trained: a BERT with random weights, in a folder as transformers saves one.

Nothing here imports torch or safetensors: the worker that prepares files has neither.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from encoders.folder import TOKENIZER, WEIGHTS, write_json
from encoders.tokenizer_training import CLOSING, OPENING, PADDING, SPECIAL_TOKENS

_NUMBERS_A_HEAD = 64
#: The standard deviation of its matrices (Devlin et al. 2019, "BERT") …
_SPREAD = 0.02
#: … but for what is added to each word for its place: so a word is at first much the same wherever it stands, and texts
#: are alike by the words that they share. A random encoder then answers more of the demo (MRR 0.23 instead of 0.15).
_SPREAD_OF_PLACES = 0.002

_OF_PLACES = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")

_Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class UntrainedShape:
    layers: int
    hidden_size: int  # a multiple of 64
    max_seq_length: int  # tokens that it reads of a text


def write_untrained(folder: Path, tokenizer: Tokenizer, shape: UntrainedShape, *, seed: int) -> int:
    """Write an encoder for a tokenizer of `train_tokenizer` into an empty folder. Returns how many weights it has.

    The same tokenizer, shape and seed give the same bytes. Its vectors are the mean of its tokens' states. Raises
    OSError as the file system does.
    """
    config = _config(shape, tokenizer.get_vocab_size())
    weights = _weights(config, seed)
    write_json(config, folder / "config.json")
    write_json(_tokenizer_config(shape), folder / "tokenizer_config.json")
    write_json(json.loads(tokenizer.to_str()), folder / TOKENIZER)
    _write_weights(weights, folder / WEIGHTS)
    return sum(each.size for each in weights.values())


def _config(shape: UntrainedShape, vocabulary_size: int) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden_size // _NUMBERS_A_HEAD,
        "intermediate_size": 4 * shape.hidden_size,
        "max_position_embeddings": shape.max_seq_length,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": _SPREAD,
        "pad_token_id": SPECIAL_TOKENS.index(PADDING),
    }


def _tokenizer_config(shape: UntrainedShape) -> dict[str, Any]:
    return {
        # The one that takes tokenizer.json as it is; BERT's own would make WordPiece of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_seq_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": PADDING,
        "cls_token": OPENING,
        "sep_token": CLOSING,
        "clean_up_tokenization_spaces": False,
    }


def _weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Matrices are drawn in the order of `_shapes`; biases are 0, and scales 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, size in _shapes(config):
        if len(size) > 1:
            spread = _SPREAD_OF_PLACES if name in _OF_PLACES else _SPREAD
            weights[name] = np.float32(spread) * rng.standard_normal(size, dtype=np.float32)
        else:
            weights[name] = np.full(size, name.endswith("LayerNorm.weight"), dtype=np.float32)
    return weights


def _shapes(config: dict[str, Any]) -> _Shapes:
    """Under the names that BERT's weights are published under. The pooler is not used, but all readers expect one."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], width)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], width)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width)
    yield from _norm("embeddings", width)
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{layer}.attention.self.{name}", width, width)
        yield from _linear(f"{layer}.attention.output.dense", width, width)
        yield from _norm(f"{layer}.attention.output", width)
        yield from _linear(f"{layer}.intermediate.dense", width, inner)
        yield from _linear(f"{layer}.output.dense", inner, width)
        yield from _norm(f"{layer}.output", width)
    yield from _linear("pooler.dense", width, width)


def _linear(name: str, width_in: int, width_out: int) -> _Shapes:
    yield f"{name}.weight", (width_out, width_in)
    yield f"{name}.bias", (width_out,)


def _norm(name: str, width: int) -> _Shapes:
    yield f"{name}.LayerNorm.weight", (width,)
    yield f"{name}.LayerNorm.bias", (width,)


def _write_weights(weights: dict[str, np.ndarray], path: Path) -> None:
    """As a safetensors file: how long the header is, the header in JSON, and the numbers one tensor after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, each in weights.items():
        header[name] = {"dtype": "F32", "shape": each.shape, "data_offsets": (end, end + each.nbytes)}
        end += each.nbytes
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)  # so that the numbers lie where processors like them
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        for each in weights.values():
            file.write(each.astype("<f4").tobytes())
