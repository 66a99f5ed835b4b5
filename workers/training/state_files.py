"""A nested state as files: tensors in safetensors, the rest in JSON. Nothing that is read can run.

What `state_dict` methods give is made of dicts, lists, tuples, tensors and plain values; other things are refused.
In JSON a tensor is {"$tensor": name}, a tuple {"$tuple": […]}, and a dict whose keys aren't all
strings, as those of optimizers, {"$items": [[key, value], …]}. Tensors that share their memory are written once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from encoders.export import write_tensors


class StateFileError(Exception):
    """The files hold no state; the message says what is wrong with them."""


def write(state: dict[str, Any], folder: Path) -> Any:
    """Write the tensors of each entry of `state` into a file of its own, NAME.safetensors.

    Returns the rest, as JSON. Raises OSError as the file system does, TypeError for what has no form here.
    """
    return {name: _written(name, value, folder) for name, value in state.items()}


def read(skeleton: Any, folder: Path) -> dict[str, Any]:
    """The state that `write` returned `skeleton` for, on the CPU.

    Raises StateFileError; OSError and MemoryError, which say nothing of the files.
    """
    try:
        return {name: _read(name, value, folder) for name, value in skeleton.items()}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors has errors of all kinds for what isn't its own
        raise StateFileError(f"{folder.name} cannot be read: {error!r}") from error


def taken_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """What of a state is JSON, and its tensors by name, on the CPU. Raises TypeError for what has no form here."""
    tensors = _Tensors()
    skeleton = _plain(state, "", tensors)
    return skeleton, tensors.named


def put_together(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that `taken_apart` returned both of."""
    if isinstance(skeleton, list):
        return [put_together(part, tensors) for part in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "$tensor" in skeleton:
        return tensors[skeleton["$tensor"]]
    if "$tuple" in skeleton:
        return tuple(put_together(part, tensors) for part in skeleton["$tuple"])
    if "$items" in skeleton:
        return {key: put_together(part, tensors) for key, part in skeleton["$items"]}
    return {key: put_together(part, tensors) for key, part in skeleton.items()}


def _written(name: str, value: Any, folder: Path) -> Any:
    skeleton, tensors = taken_apart(value)
    if tensors:
        write_tensors(tensors, folder / f"{name}.safetensors")
    return skeleton


def _read(name: str, value: Any, folder: Path) -> Any:
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a file")
    path = folder / f"{name}.safetensors"
    return put_together(value, load_file(path) if path.exists() else {})


class _Tensors:
    """The tensors of one file, by their names in it."""

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # by where in memory a tensor lies, and how

    def name(self, tensor: Tensor, path: str) -> str:
        """Take a tensor that was found at a path. Returns its name, which may be another path's."""
        tensor = tensor.detach()
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if where not in self._names or tensor.numel() == 0:
            while path in self.named:  # a key with a dot in it
                path += "_"
            self._names[where] = path
            self.named[path] = tensor.cpu().contiguous()
        return self._names[where]


def _plain(value: Any, path: str, tensors: _Tensors) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": tensors.name(value, path or "value")}
    if isinstance(value, (tuple, list)):
        parts = [_plain(part, f"{path}.{index}".lstrip("."), tensors) for index, part in enumerate(value)]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if isinstance(value, dict):
        items = [[key, _plain(part, f"{path}.{key}".lstrip("."), tensors)] for key, part in value.items()]
        simple = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(items) if simple else {"$items": items}
    raise TypeError(f"{path} is a {type(value).__name__}, which has no form in a state file.")
