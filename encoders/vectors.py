"""An adapter for ready vectors: those that some encoder made in, better ones of the same length out.

    x = √D v / |v|          v a given vector, of D numbers; its length never matters
    linear    y = x + R x                     R (D, D) is 0 before training
    mlp       y = x + B gelu(A x)             B (D, D) is 0 before training, A (D, D) is random
    embedding y / |y|

So an untrained adapter leaves every cosine as it is, and weight decay pulls towards the vectors as they came: decay
of the whole matrix I + R, which is what "a matrix that starts as the identity" would be given, would change no cosine
at all where nothing was learnt, and only make the learning rate larger in effect. gelu is its tanh approximation,
which numpy can write.

x has the numbers of about 1 that initialisations expect, whatever D is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from encoders.adapter_folder import CONFIG, KIND, Form, check_adapter_folder
from encoders.architectures import check_finite
from encoders.device import on_device
from encoders.errors import UnsafeFolderError
from encoders.export import flush, write_tensors
from encoders.folder import WEIGHTS

#: (n, D), or n times (D,); of any float.
Rows = np.ndarray | Sequence[np.ndarray]

_FORMULAS: dict[str, tuple[str, ...]] = {
    "linear": ('x = x + x @ w["residual.weight"].T',),
    "mlp": (
        'h = x @ w["residual.0.weight"].T',
        'x = x + (0.5 * h * (1 + np.tanh(0.7978845608 * (h + 0.044715 * h**3)))) @ w["residual.2.weight"].T',
    ),
}
_README = """# A fine-tuned adapter for vectors

Takes vectors of {dimension} numbers, made by the encoder that made those it was trained on, to vectors of {dimension}
numbers of length 1; two are as alike as their dot product says. The encoder itself is not in here.

{usage}"""
_USAGE = """```python
import numpy as np
from safetensors.numpy import load_file

w = load_file("{weights}")
x = vectors * {dimension} ** 0.5 / np.linalg.norm(vectors, axis=1, keepdims=True)  # vectors: (n, {dimension})
{formula}
x = x / np.linalg.norm(x, axis=1, keepdims=True)
```
"""


class VectorAdapter(nn.Module):
    """Vectors to vectors; see the top of the module."""

    def __init__(self, residual: nn.Module, *, form: Form, dimension: int) -> None:
        super().__init__()
        self.residual = residual
        self.form = form
        self._dimension = dimension

    @classmethod
    def untrained(cls, form: Form, dimension: int, *, seed: int, device: str | torch.device = "cpu") -> VectorAdapter:
        """One that leaves every cosine as it is, in eval mode. `seed` decides what an mlp begins with."""
        adapter = cls(_residual(form, dimension), form=form, dimension=dimension)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in adapter.parameters():
                weight.zero_()
            if form == "mlp":
                first = next(adapter.parameters())
                first.normal_(0.0, dimension**-0.5, generator=generator)
        return adapter.to(device).eval()

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> VectorAdapter:
        """Check and open an adapter's folder, in eval mode. Raises UnsafeFolderError or NonFiniteWeightsError."""
        shape = check_adapter_folder(folder)
        # No memory for weights that are replaced at once, nor for sizes that the weights do not bear out.
        with torch.device("meta"):
            adapter = cls(_residual(shape.form, shape.dimension), form=shape.form, dimension=shape.dimension)
        adapter.load_state_dict(_read_weights(folder / WEIGHTS, adapter.state_dict()), assign=True)
        return adapter.to(device).eval()

    @property
    def dimension(self) -> int:
        """D, of what goes in and of what comes out."""
        return self._dimension

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, rows: Rows) -> Tensor:
        """n vectors to (n, D) float32, not yet of length 1. Zeros stay zeros. No rows have a gradient too."""
        given = rows if isinstance(rows, np.ndarray) else np.reshape(rows, (len(rows), self.dimension))
        x = on_device(np.ascontiguousarray(given, dtype=np.float32), self.device)
        # By the largest number first: the square of 1e30 is beyond float32, and that of 1e-30 is 0 in it.
        x = x / x.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        x = F.normalize(x, dim=-1) * self.dimension**0.5
        moved: Tensor = x + self.residual(x)
        return moved

    @torch.inference_mode()
    def embed(self, rows: Rows) -> np.ndarray:
        """n vectors to (n, D) float32 of length 1."""
        found: np.ndarray = F.normalize(self(rows), dim=-1).cpu().numpy()
        return found

    def usage(self) -> str:
        """How to use its folder with numpy, in Markdown."""
        return _USAGE.format(dimension=self.dimension, weights=WEIGHTS, formula="\n".join(_FORMULAS[self.form]))

    def save(self, folder: Path) -> None:
        """Write a folder that `load` opens, and flush it to the disk. `folder` must be empty or not exist.

        Raises UnsafeFolderError, and NonFiniteWeightsError before anything is written; OSError as the file system does.
        """
        weights = {name: tensor.detach().to("cpu").contiguous() for name, tensor in self.state_dict().items()}
        for name, tensor in weights.items():
            check_finite(name, tensor)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UnsafeFolderError(f"{folder} holds files already; a model is written to a folder of its own.")
        write_tensors(weights, folder / WEIGHTS)
        config = {"kind": KIND, "form": self.form, "dimension": self.dimension}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        readme = _README.format(dimension=self.dimension, usage=self.usage())
        (folder / "README.md").write_text(readme, encoding="utf-8")
        flush(folder)


def _residual(form: Form, dimension: int) -> nn.Module:
    def matrix() -> nn.Linear:
        return nn.Linear(dimension, dimension, bias=False)

    return matrix() if form == "linear" else nn.Sequential(matrix(), nn.GELU(approximate="tanh"), matrix())


def _read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Exactly the expected tensors, in memory of their own: the file may change while the model is in use."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        shapes = {name: (list(part.get_shape()), part.get_dtype()) for name, part in found.items()}
        if shapes != {name: (list(tensor.shape), "F32") for name, tensor in expected.items()}:
            raise UnsafeFolderError(f"{WEIGHTS} does not fit {CONFIG}; copy both again from the model's source.")
        weights = {name: file.get_tensor(name).clone() for name in expected}
    for name, tensor in weights.items():
        check_finite(name, tensor)
    return weights
