"""A text encoder's forward in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from encoders.graph import OUTPUT, Graph
from encoders.text import TextEncoder

#: Of the operations of a group of texts, what may be spent on padding.
_MOST_PADDING = 0.1


def is_installed() -> bool:
    """Whether what makes and runs graphs is there."""
    return all(find_spec(library) is not None for library in ("onnx", "onnxruntime"))


class Session:
    """The forward of an encoder, with the weights it has now. Any thread may call it, several at once."""

    def __init__(self, encoder: TextEncoder, *, threads: int) -> None:
        """threads: how many cores one forward may use; forwards at the same time share them."""
        import onnxruntime

        graph = Graph(encoder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait are ruinous beside a training on the same cores, and beside each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        self._session = onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        self._weights = graph.weights  # which the session may read where they are
        self._pooling = encoder.pooling
        self._width = encoder.transformer.word_embeddings.embedding_dim
        self._dimension = encoder.dimension
        self._useful = self._padding = 0  # operations so far, in units of 4·W

    def embed(self, tokens: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        """Token ids, one integer array (length,) a text, to (n, D) float32 of length 1."""
        lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
        vectors = np.empty((len(tokens), self._dimension), dtype=np.float32)
        for group in groups(lengths, self._width):
            inputs = _inputs([tokens[index] for index in group], lengths[group], self._pooling)
            (vectors[group],) = self._session.run([OUTPUT], inputs)
            useful, padding = operations(lengths[group], self._width)
            self._useful += int(useful[-1])
            self._padding += int(padding[-1])
        return vectors

    @property
    def padding(self) -> float:
        """The share of all operations so far that padding took."""
        return self._padding / max(self._useful + self._padding, 1)


def groups(lengths: npt.NDArray[np.int64], width: int) -> Iterator[npt.NDArray[np.intp]]:
    """Texts of lengths (n,) by their places, in groups whose attention spends little on padding.

    What padding adds is kept under a tenth of what a group takes without.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rest = lengths[order[start:]]
        useful, padding = operations(rest, width)
        beyond = np.flatnonzero(padding > _MOST_PADDING * useful)
        end = start + (int(beyond[0]) if len(beyond) else len(rest))
        yield order[start:end]
        start = end


def operations(lengths: npt.NDArray[np.int64], width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of a layer over a group of texts, the longest first: what all up to each text (n,) take, and what padding adds.

    In units of 4·W operations: a pair of tokens in attention takes one, and a token 6·W in matrix products.
    """
    return np.cumsum(6 * width * lengths + lengths**2), np.cumsum(lengths[0] ** 2 - lengths**2)


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
