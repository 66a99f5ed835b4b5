"""Models of one size that differ: MiniLM with a little noise on its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.serve_servers import MODEL
from encoders.registry import locate


def perturbed_models(folder: Path, count: int) -> list[str]:
    """So many of them in a folder of base models; their names."""
    source = locate(MODEL, None)
    weights = load_file(source / "model.safetensors")
    names = [f"bench/minilm-{number}" for number in range(count)]
    for number, name in enumerate(names):
        shutil.copytree(source, folder / name)
        generator = torch.Generator().manual_seed(number)
        noisy = {
            key: weight + 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
            if weight.is_floating_point() and weight.ndim == 2
            else weight
            for key, weight in weights.items()
        }
        save_file(noisy, folder / name / "model.safetensors", metadata={"format": "pt"})
    return names
