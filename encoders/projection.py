"""A linear map after pooling: `Dense` in a sentence-transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.architectures import check_finite
from encoders.errors import UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import DENSE, DENSE_WEIGHTS, read_dimension, read_object

_IDENTITY = "torch.nn.modules.linear.Identity"
_ACTIVATIONS = {_IDENTITY: nn.Identity, "torch.nn.modules.activation.Tanh": nn.Tanh}
# What else a Dense may say, as long as it says what is always so here.
_FIXED = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}


class Projection(nn.Module):
    def __init__(self, width: int, dimension: int, *, bias: bool = False, activation: str = _IDENTITY) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dimension, bias=bias)
        self.activation = _ACTIVATIONS[activation]()
        self._activation_name = activation

    @classmethod
    def fresh(cls, width: int, dimension: int, *, seed: int) -> Projection:
        """A random one that keeps angles as well as it can: its rows, or its columns, are orthonormal."""
        projection = cls(width, dimension)
        generator = torch.Generator().manual_seed(seed)
        nn.init.orthogonal_(projection.linear.weight, generator=generator)
        return projection

    @classmethod
    def of_folder(cls, folder: Path, width: int) -> Projection | None:
        """A checked folder's, if it has one. Raises UnsafeFolderError, UnsupportedArchitectureError."""
        config = read_object(folder, DENSE)
        if not config:
            return None
        activation = config.get("activation_function", _IDENTITY)
        if activation not in _ACTIVATIONS:
            raise UnsupportedArchitectureError(
                f"{DENSE} has {activation!r}; supported is one of {', '.join(_ACTIVATIONS)}."
            )
        for setting, fixed in _FIXED.items():
            if config.get(setting, fixed) != fixed:
                raise UnsupportedArchitectureError(
                    f"{DENSE} has {setting} {config[setting]!r}; supported is {fixed!r}."
                )
        bias = config.get("bias", True) is True
        projection = cls(width, read_dimension(folder), bias=bias, activation=activation)
        try:
            weights = load_file(folder / DENSE_WEIGHTS)
            projection.load_state_dict({name: weight.float() for name, weight in weights.items()})
        except (RuntimeError, SafetensorError) as error:
            raise UnsafeFolderError(f"{DENSE_WEIGHTS} does not fit {DENSE}: {error}") from error
        for name, weight in weights.items():
            check_finite(name, weight)
        return projection

    @property
    def dimension(self) -> int:
        return self.linear.out_features

    @property
    def is_bent(self) -> bool:
        """Whether a tanh follows the linear map."""
        return isinstance(self.activation, nn.Tanh)

    @property
    def config(self) -> dict[str, Any]:
        """As `Dense` of sentence-transformers reads it."""
        return {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": self._activation_name,
        }

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, width) to (N, dimension)."""
        projected: Tensor = self.activation(self.linear(vectors))
        return projected
