"""A saved model as one ONNX graph: token ids in, unit vectors out, for readers without torch.

The graph is that of transformers' own forward, over padded batches; see `encoders/padded.py`. Making it takes 15 to
30 seconds, whatever the size of the model, so it is made on request.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders import padded
from encoders.errors import EncoderError, MissingExtraError
from encoders.text import TextEncoder

#: Where sentence-transformers and transformers.js look for it.
FILE = "onnx/model.onnx"
#: How far a number of a unit vector may be from what torch makes of the same tokens.
TOLERANCE = 1e-4

_LIBRARIES = ("transformers", "onnx", "onnxscript", "onnxruntime")


class OnnxError(EncoderError):
    """The graph gives other vectors than the model."""


def check_installed() -> None:
    """Raise MissingExtraError unless `write` can do its work."""
    if any(find_spec(library) is None for library in _LIBRARIES):
        raise MissingExtraError("An export to ONNX", "onnx")


def write(folder: Path) -> None:
    """Put `onnx/model.onnx` into a model's folder, once it is known to agree with the model.

    Inputs: `input_ids` and `attention_mask` (N, L) int64, padded on the right. Outputs: `last_hidden_state` (N, L, W)
    and `sentence_embedding` (N, D), of length 1.

    Raises OnnxError, MissingExtraError, and what `TextEncoder.load` raises.
    """
    check_installed()
    encoder = TextEncoder.load(folder)
    graph = _Graph(padded.load(folder).model, encoder).eval()
    path = folder / FILE
    path.parent.mkdir()
    _export(graph, path)
    _compare(encoder, path)


class _Graph(nn.Module):
    def __init__(self, model: Any, encoder: TextEncoder) -> None:
        super().__init__()
        self.model = model
        self.pool = _POOLINGS[encoder.pooling]
        self.projection = encoder.projection or nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states, F.normalize(self.projection(self.pool(states, attention_mask)), dim=-1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _cls(states: Tensor, _mask: Tensor) -> Tensor:
    return states[:, 0]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    ends = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, ends)[:, 0]


_POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls, "last": _last}


def _export(graph: nn.Module, path: Path) -> None:
    example = torch.ones(2, 7, dtype=torch.int64)
    # With padding in it: of a mask of ones transformers makes no mask at all, and the graph would have none.
    mask = example.clone()
    mask[1, 4:] = 0
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        graph,
        (example, mask),
        dynamo=True,
        dynamic_shapes=(dynamic, dynamic),
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "sentence_embedding"],
        verbose=False,
    )
    if program is None:
        raise OnnxError("torch made no ONNX graph of this model.")
    program.save(str(path))


def _compare(encoder: TextEncoder, path: Path) -> None:
    """Batches of other shapes than the example's: sizes that were taken for constants would show."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    longest = min(19, encoder.max_seq_length)
    for lengths in ([3], [longest, 2, 5]):
        tokens = [random.integers(0, encoder.tokenizer.vocabulary_size, length) for length in lengths]
        ids, mask = (np.zeros((len(lengths), max(lengths)), dtype=np.int64) for _ in range(2))
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        (vectors,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
        if not (drift := float(np.abs(vectors - encoder.embed(tokens)).max())) <= TOLERANCE:
            raise OnnxError(f"The ONNX graph's vectors are {drift:.1g} from the model's; at most {TOLERANCE} is right.")
