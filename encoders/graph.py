"""A BERT's packed forward as a graph for onnxruntime, which is faster on a CPU than torch, above all for one text.

Made from the weights of an encoder in memory in a few milliseconds; nothing is traced and nothing written to disk. As
in `encoders/bert.py`, texts lie behind each other in one row of tokens, so that nothing is spent on padding; only
attention sees them side by side, padded to the longest, which costs next to nothing while texts are short.

Letters: T tokens of the batch, N texts, L the length of the longest, W width of the model, D of the vectors.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from encoders.bert import AddAndNorm, Bert, Layer, SelfAttention
from encoders.text import TextEncoder

#: Of the standard operators, and of onnxruntime's own.
OPSET = 17
_FUSED = "com.microsoft"
_IR_VERSION = 9
_INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "token_ids": ("INT64", ("T",)),
    "positions": ("INT64", ("T",)),
    "spread": ("INT64", ("N", "L")),  # where in the row each token of each text is; anything beyond its end
    "collect": ("INT64", ("T",)),  # where among N·L places each token of the row is
    "lengths": ("INT32", ("N",)),
    "pooling": ("FLOAT", ("N", "T")),  # each text's share of each token
}
OUTPUT = "vectors"


def has_graph(encoder: TextEncoder) -> bool:
    """Whether there is a graph for this architecture."""
    return isinstance(encoder.transformer, Bert)


class Graph:
    """A model as onnxruntime reads it: `model`, serialized, and `weights`, which it doesn't hold but names."""

    def __init__(self, encoder: TextEncoder) -> None:
        """`encoder`: one for which `has_graph` holds. Its weights are read where they are, and not copied."""
        import onnx

        assert isinstance(encoder.transformer, Bert)  # noqa: S101 — the caller has asked has_graph
        self.weights: dict[str, npt.NDArray[np.float32]] = {}
        self._helper = onnx.helper
        self._nodes: list[Any] = []
        self._add(encoder, encoder.transformer)
        self.model = self._serialized(onnx, encoder.dimension)

    def _add(self, encoder: TextEncoder, bert: Bert) -> None:
        rows = self._embeddings(bert)
        for number, layer in enumerate(bert.layers):
            assert isinstance(layer, Layer)  # noqa: S101
            rows = self._layer(f"layer{number}", layer, rows)
        pooled = self._node("MatMul", "pooling", rows)
        if encoder.projection is not None:
            linear = encoder.projection.linear
            pooled = self._node("MatMul", pooled, self._weight("projection", linear.weight.T))
            if linear.bias is not None:
                pooled = self._node("Add", pooled, self._weight("projection.bias", linear.bias))
            if encoder.projection.is_bent:
                pooled = self._node("Tanh", pooled)
        norms = self._node("ReduceL2", pooled, axes=[-1], keepdims=1)
        # As torch's normalize: a vector of zeros stays one.
        norms = self._node("Max", norms, self._weight("least", np.array([1e-12], dtype=np.float32)))
        self._node("Div", pooled, norms, output=OUTPUT)

    def _embeddings(self, bert: Bert) -> str:
        embeddings = bert.embeddings
        # Every token is of the first segment, and positions begin at an offset: both are in one table.
        positions = embeddings.position_embeddings.weight[embeddings.position_offset :]
        table = positions + embeddings.token_type_embeddings.weight[0]
        words = self._node("Gather", self._weight("words", embeddings.word_embeddings.weight), "token_ids")
        places = self._node("Gather", self._weight("places", table), "positions")
        norm = embeddings.LayerNorm
        summed = self._node("Add", words, places)
        return self._node(
            "LayerNormalization", summed, self._weight("norm", norm.weight), self._weight("norm.bias", norm.bias),
            axis=-1, epsilon=norm.eps,
        )  # fmt: skip

    def _layer(self, name: str, layer: Layer, rows: str) -> str:
        attention = cast(SelfAttention, layer.attention["self"])
        projections = (attention.query, attention.key, attention.value)
        joined = np.concatenate([_array(each.weight.T) for each in projections], axis=1)
        biases = np.concatenate([_array(each.bias) for each in projections])
        projected = self._node("MatMul", rows, self._weight(f"{name}.qkv", joined))
        side_by_side = self._node("Gather", projected, "spread")
        query, key, value = self._split(side_by_side, 3)
        mixed = self._node(
            "MultiHeadAttention", query, key, value, self._weight(f"{name}.qkv.bias", biases), "lengths",
            domain=_FUSED, num_heads=attention.heads,
        )  # fmt: skip
        flat = self._node("Reshape", mixed, self._weight("flat", np.array([-1, joined.shape[0]], dtype=np.int64)))
        rows = self._add_and_norm(
            f"{name}.attended", cast(AddAndNorm, layer.attention["output"]), self._node("Gather", flat, "collect"), rows
        )
        dense = cast(nn.Linear, layer.intermediate["dense"])
        widened = self._node("MatMul", rows, self._weight(f"{name}.wide", dense.weight.T))
        widened = self._node("BiasGelu", widened, self._weight(f"{name}.wide.bias", dense.bias), domain=_FUSED)
        return self._add_and_norm(f"{name}.closed", layer.output, widened, rows)

    def _add_and_norm(self, name: str, part: AddAndNorm, rows: str, residual: str) -> str:
        projected = self._node("MatMul", rows, self._weight(f"{name}", part.dense.weight.T))
        norm = part.LayerNorm
        return self._node(
            "SkipLayerNormalization", projected, residual, self._weight(f"{name}.norm", norm.weight),
            self._weight(f"{name}.norm.bias", norm.bias), self._weight(f"{name}.bias", part.dense.bias),
            domain=_FUSED, epsilon=norm.eps,
        )  # fmt: skip

    def _split(self, rows: str, parts: int) -> list[str]:
        outputs = [f"{rows}.{part}" for part in range(parts)]
        width = self.weights["layer0.qkv"].shape[1] // parts
        sizes = self._weight("thirds", np.array([width] * parts, dtype=np.int64))
        self._nodes.append(self._helper.make_node("Split", [rows, sizes], outputs, axis=-1))
        return outputs

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _weight(self, name: str, weight: Tensor | npt.NDArray[Any]) -> str:
        self.weights[name] = weight if isinstance(weight, np.ndarray) else _array(weight)
        return name

    def _serialized(self, onnx: Any, dimension: int) -> bytes:
        inputs = [
            self._helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)
            for name, (kind, shape) in _INPUTS.items()
        ]
        output = self._helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ("N", dimension))
        small = [
            onnx.numpy_helper.from_array(array, name)
            for name, array in self.weights.items()
            if array.dtype != np.float32
        ]
        large = [_outside(onnx, name, array) for name, array in self.weights.items() if array.dtype == np.float32]
        graph = self._helper.make_graph(self._nodes, "bert", inputs, [output], [*small, *large])
        opsets = [self._helper.make_opsetid("", OPSET), self._helper.make_opsetid(_FUSED, 1)]
        model = self._helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        self.weights = {name: array for name, array in self.weights.items() if array.dtype == np.float32}
        serialized: bytes = model.SerializeToString()
        return serialized


def _array(weight: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(weight.detach().float().cpu().numpy())


def _outside(onnx: Any, name: str, array: npt.NDArray[np.float32]) -> Any:
    """What stands for a weight that is given to the session beside the model."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="in memory")
    return tensor
