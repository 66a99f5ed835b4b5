"""Which forward runs a folder's weights: a packed one where there is one here, transformers' own for all others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from encoders import padded
from encoders.bert import Bert, BertShape, Dropout
from encoders.errors import NonFiniteWeightsError, UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import PACKED, WEIGHTS, packs, position_offset, read_fraction, read_object, read_positive_int
from encoders.mpnet import Mpnet, MpnetShape
from encoders.transformer import Transformer

# Settings of config.json that a packed forward takes for granted, and that transformers no longer reads.
_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False}
# Under what a folder keeps an encoder's weights that was saved with a head on it.
_PREFIXES = {"bert": "bert", "mpnet": "mpnet", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}


def load(folder: Path) -> tuple[Transformer, Dropout]:
    """A checked folder's weights in float32, and the dropout that they were trained with.

    Raises UnsafeFolderError, UnsupportedArchitectureError, MissingExtraError or NonFiniteWeightsError.
    """
    config = read_object(folder, "config.json")
    dropout = Dropout(
        hidden=_read_dropout(folder, config, "hidden_dropout_prob"),
        attention=_read_dropout(folder, config, "attention_probs_dropout_prob"),
    )
    _check_taken_for_granted(config)
    if packs(folder):
        return _load_packed(folder, config), dropout
    transformer = padded.load(folder)
    for name, tensor in transformer.state_dict().items():
        check_finite(name, tensor)
    return transformer, dropout


def stored_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """What the encoder's own weights are called among a file's `names`: published name → name in the file."""
    names = set(names)
    prefix = f"{_PREFIXES.get(kind, kind)}."
    if any(name.startswith(prefix) for name in names):
        names = {name for name in names if name.startswith(prefix)}
    # Old BERTs keep the numbers from 0 to 511 as a weight; newer transformers ask what it is for.
    return {
        published: name
        for name in names
        if (published := _published(name.removeprefix(prefix))) != "embeddings.position_ids"
    }


def check_finite(name: str, weights: Tensor) -> None:
    """Raise NonFiniteWeightsError when any weight is NaN or infinite."""
    # Both ends of the range carry NaN and infinity: one pass, and no mask as large as the weights.
    if not torch.stack(torch.aminmax(weights.detach())).isfinite().all():
        raise NonFiniteWeightsError(f"The weights {name!r} hold NaN or infinity; no embedding can come of them.")


def _published(name: str) -> str:
    """TensorFlow's names of LayerNorm's weights live on in the oldest files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _read_dropout(folder: Path, config: dict[str, Any], setting: str) -> float:
    return read_fraction(folder, setting, 0.1) if config.get("model_type") in PACKED else 0.1


def _check_taken_for_granted(config: dict[str, Any]) -> None:
    if config.get("model_type") not in PACKED:
        return
    for setting, supported in _SUPPORTED.items():
        # Old files leave out what was the only possibility then.
        if (found := config.get(setting, supported)) != supported:
            raise UnsupportedArchitectureError(f"config.json has {setting} {found!r}; supported is {supported!r}.")


def _load_packed(folder: Path, config: dict[str, Any]) -> Transformer:
    epsilon = read_fraction(folder, "layer_norm_eps", 1e-12)
    offset = position_offset(config)
    # No memory for weights that are replaced at once, nor for sizes that the weights do not bear out.
    with torch.device("meta"):
        transformer: Transformer
        if config["model_type"] == "mpnet":
            transformer = Mpnet(MpnetShape(**_read_sizes(folder, MpnetShape), layer_norm_eps=epsilon), offset)
        else:
            transformer = Bert(BertShape(**_read_sizes(folder, BertShape), layer_norm_eps=epsilon), offset)
    weights = _read_weights(folder / WEIGHTS, set(transformer.state_dict()), config["model_type"])
    try:
        transformer.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UnsafeFolderError(f"{WEIGHTS} does not fit config.json: {error}") from error
    return transformer


def _read_sizes(folder: Path, shape: type[BertShape] | type[MpnetShape]) -> dict[str, int]:
    names = [field.name for field in fields(shape) if field.name != "layer_norm_eps"]
    sizes = {name: read_positive_int(folder, name) for name in names}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UnsafeFolderError("config.json has a hidden_size that num_attention_heads does not divide.")
    return sizes


def _read_weights(path: Path, wanted: set[str], kind: str) -> dict[str, Tensor]:
    """The named tensors as float32, in memory of their own: the file may change while the model is in use."""
    weights = {}
    with safe_open(path, framework="pt") as file:
        for published, name in stored_names(file.keys(), kind).items():
            if published in wanted:
                weights[published] = file.get_tensor(name).to(torch.float32, copy=True)
                check_finite(published, weights[published])
    return weights
