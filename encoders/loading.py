"""Opening a model's folder, by what the model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from encoders.text import TextEncoder
from encoders.vectors import VectorAdapter

#: What is trained and served.
AnyEncoder = TextEncoder | VectorAdapter


def load(folder: Path, reads: Literal["texts", "vectors"], *, device: str | torch.device = "cpu") -> AnyEncoder:
    """Check and open a folder; float32, in eval mode. Raises EncoderError."""
    return (TextEncoder if reads == "texts" else VectorAdapter).load(folder, device=device)
