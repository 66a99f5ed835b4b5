"""Low-rank adaptation (Hu et al. 2021): frozen matrices, each with a small product of two trained ones beside it.

The matrices are peft's. Modules here have transformers' names, so what is trained here is an adapter of the model
in transformers too. peft is imported when a LoRA is made, and only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.errors import AdaptationError, MissingExtraError
from encoders.transformer import Transformer

#: Where in a model's folder the adapter lies.
ADAPTER = "adapter"
_NAME = "default"  # of the one adapter that there is, among peft's
# Weights of peft's layers; what else they have are those of the layer below.
_MARK = ".lora_"
_BELOW = ".base_layer"


def add(transformer: Transformer, *, rank: int, alpha: float, dropout: float, seed: int) -> None:
    """Freeze all weights, and give every linear map of the layers that are not frozen already a LoRA of its own.

    It changes no vector until it is trained. Raises MissingExtraError, AdaptationError.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("`train: lora`", "lora") from error
    body = transformer.published
    targets = [name for name, module in body.named_modules() if _is_target(name, module)]
    if not targets:
        raise AdaptationError("No linear map is left for a LoRA; freeze fewer layers.")
    # A number for peft, though its annotation says int.
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), lora_dropout=dropout, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, body, adapter_name=_NAME)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(_MARK in name)


def is_adapted(transformer: Transformer) -> bool:
    return any(_MARK in name for name, _ in transformer.named_parameters())


def merged(transformer: Transformer) -> dict[str, Tensor]:
    """The weights by their published names, with the trained products added to the matrices they stand beside."""
    body = transformer.published
    weights = {
        name.replace(_BELOW, ""): weight.detach() for name, weight in body.state_dict().items() if _MARK not in name
    }
    for name, layer in _layers(body):
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight(_NAME).detach()
    return weights


def save_adapter(transformer: Transformer, folder: Path, *, base_model: str | None = None) -> None:
    """Write what was added to the base as peft reads it, for the base model in transformers."""
    body = transformer.published
    weights = {
        "base_model.model." + name.replace(f".{_NAME}.", "."): weight.detach().cpu().contiguous()
        for name, weight in body.state_dict().items()
        if _MARK in name
    }
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)
    config: Any = cast(Any, body).peft_config[_NAME]
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def _layers(body: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in body.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


def _is_target(name: str, module: nn.Module) -> bool:
    trained = isinstance(module, nn.Linear) and module.weight.requires_grad
    return trained and "pooler" not in name.split(".")
