"""Whether a model can be trained as a job asks, told from its folder before its weights are read."""

from __future__ import annotations

from pathlib import Path

from api_schemas.methods import ModelOptions
from encoders.folder import DENSE, read_dimension, read_object


def reason_against(options: ModelOptions, folder: Path) -> str | None:
    """Why not, and what to do; None if nothing speaks against it. Raises UnsafeFolderError."""
    dimension = read_dimension(folder)
    projected = (folder / DENSE).exists()
    if projected and options.projection_dim not in (None, dimension):
        return f"the model has a projection to {dimension} dimensions already; leave projection_dim out."
    widest = max(options.matryoshka_dims or [0])
    vector = options.projection_dim or dimension
    if widest > vector:
        return f"matryoshka_dims has {widest}, and a vector has {vector} numbers."
    layers = read_object(folder, "config.json").get("num_hidden_layers")
    if isinstance(layers, int) and options.freeze_layers > layers:
        return f"freeze_layers is {options.freeze_layers}, and the model has {layers} layers."
    has_projection = projected or options.projection_dim is not None or options.train == "projection"
    # A LoRA stands beside layers that are not frozen.
    if options.freeze_layers == layers and (options.train == "lora" or not has_projection):
        return f"freeze_layers is {layers}, which is all layers: nothing is left to be trained. Freeze fewer."
    return None
