"""A text encoder's forward in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from encoders.graph import OUTPUT, Graph
from encoders.text import TextEncoder

_SPINNING = "session.intra_op.allow_spinning"


def is_installed() -> bool:
    """Whether what makes and runs graphs is there."""
    return all(find_spec(library) is not None for library in ("onnx", "onnxruntime"))


class Session:
    """The forward of an encoder, with the weights it has now. Any thread may call it; several at once."""

    def __init__(self, encoder: TextEncoder, *, threads: int, spinning: bool = False) -> None:
        """threads: in which one forward computes. spinning: whether they keep their cores while they wait."""
        import onnxruntime

        graph = Graph(encoder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry(_SPINNING, "1" if spinning else "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        self._weights = graph.weights  # onnxruntime reads them where they are
        self._session = onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        self._pooling = encoder.pooling

    def embed(self, tokens: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        """Token ids, one integer array (length,) a text, to (n, D) float32 of length 1."""
        lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
        (vectors,) = self._session.run([OUTPUT], _inputs(tokens, lengths, self._pooling))
        found: npt.NDArray[np.float32] = vectors
        return found


def _inputs(tokens: Sequence[npt.NDArray[np.int32]], lengths: npt.NDArray[np.int64], pooling: str) -> dict[str, object]:
    longest, total = int(lengths.max()), int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    columns = np.arange(longest)
    is_token = columns < lengths[:, None]
    return {
        "token_ids": np.concatenate(tokens).astype(np.int64),
        "positions": np.broadcast_to(columns, is_token.shape)[is_token],
        "spread": np.where(is_token, starts[:, None] + columns, 0),
        "collect": np.flatnonzero(is_token),
        "lengths": lengths.astype(np.int32),
        "pooling": _shares(lengths, starts, total, pooling),
    }


def _shares(
    lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], total: int, pooling: str
) -> npt.NDArray[np.float32]:
    """(N, T): each text's vector is the sum of its tokens' states by these."""
    shares = np.zeros((len(lengths), total), dtype=np.float32)
    texts = np.arange(len(lengths))
    if pooling == "mean":
        shares[np.repeat(texts, lengths), np.arange(total)] = np.repeat((1 / lengths).astype(np.float32), lengths)
    else:
        shares[texts, starts if pooling == "cls" else starts + lengths - 1] = 1
    return shares
