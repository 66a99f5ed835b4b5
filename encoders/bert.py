"""A BERT forward without padding.

Texts of one batch lie behind each other in one long row of tokens, shortest text first. Everything but
attention treats tokens one by one and never knows where a text ends; attention runs once per group of
texts that are equally long. No arithmetic is spent on padding, and a text's vector does not depend on its
neighbours.

Modules are named so that `state_dict()` has the names that BERT weights are published under.

Letters in comments: T tokens of the batch, N texts, C texts of one group, L their length, H heads,
D width of a head, W = H·D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.attention import attend
from encoders.device import on_device
from encoders.dropout import dropout as drop
from encoders.dropout import dropout_and_add
from encoders.transformer import Transformer, is_trained


@dataclass(frozen=True)
class BertShape:
    """The sizes in `config.json`; the names are that file's own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


@dataclass(frozen=True)
class Dropout:
    """The probabilities in force for one forward; both 0 outside training."""

    hidden: float = 0.0
    attention: float = 0.0

    def within(self, module: nn.Module) -> Dropout:
        """As it is in a module: what is frozen is not taught to bear noise."""
        return self if is_trained(module) else Dropout()


@dataclass(frozen=True)
class Packed:
    """A batch as one row of tokens, and how to find the texts in it again."""

    token_ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, from 0 in each text
    groups: list[tuple[int, int]]  # (C, L), in the order of the row
    restore: Tensor  # (N,) int64: where each given text went

    def split(self, rows: Tensor) -> Iterator[Tensor]:
        """Cut (T, …) into one (C, L, …) per group."""
        # One split instead of a slice per group: the gradient of a slice is as long as the whole row. And none where
        # all texts are equally long, as those that were cut are: its gradient would be a copy.
        sizes = [texts * length for texts, length in self.groups]
        parts = (rows,) if len(sizes) == 1 else torch.split(rows, sizes)
        for (texts, length), part in zip(self.groups, parts, strict=True):
            yield part.view(texts, length, *part.shape[1:])


def in_one_row(groups: list[Tensor]) -> Tensor:
    """Rows of each group (C·L, …) behind each other, (T, …); those of a single group without a copy."""
    return groups[0] if len(groups) == 1 else torch.cat(groups)


def pack(tokens: Sequence[np.ndarray], device: torch.device) -> Packed:
    """Lay texts, each an integer array (length,) with length at least 1, behind each other by length."""
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    order = np.argsort(lengths, kind="stable")
    restore = np.empty_like(order)
    restore[order] = np.arange(len(order))
    group_lengths, group_texts = np.unique(lengths, return_counts=True)
    token_ids = np.concatenate([tokens[index] for index in order]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths[order]])
    return Packed(
        token_ids=on_device(token_ids, device),
        positions=on_device(positions, device),
        groups=list(zip(group_texts.tolist(), group_lengths.tolist(), strict=True)),
        restore=on_device(restore, device),
    )


class Embeddings(nn.Module):
    def __init__(self, shape: BertShape, position_offset: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.position_offset = position_offset

    def forward(self, packed: Packed, dropout: float) -> Tensor:
        first_segment = self.token_type_embeddings.weight[0]
        positions = packed.positions + self.position_offset
        rows = self.word_embeddings(packed.token_ids) + self.position_embeddings(positions)
        return drop(self.LayerNorm(rows + first_segment), dropout)


class SelfAttention(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.query = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.key = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.value = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, rows: Tensor, packed: Packed, dropout: float) -> Tensor:
        query, key, value = (
            packed.split(projected.unflatten(-1, (self.heads, -1)))
            for projected in (self.query(rows), self.key(rows), self.value(rows))
        )
        return in_one_row([attend(q, k, v, dropout) for q, k, v in zip(query, key, value, strict=True)])


class AddAndNorm(nn.Module):
    """What closes both halves of a layer: project, add what came in, normalise."""

    def __init__(self, width_in: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, rows: Tensor, residual: Tensor, dropout: float) -> Tensor:
        normed: Tensor = self.LayerNorm(dropout_and_add(self.dense(rows), residual, dropout))
        return normed


class Layer(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(shape), "output": AddAndNorm(shape.hidden_size, shape)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.hidden_size, shape.intermediate_size)})
        self.output = AddAndNorm(shape.intermediate_size, shape)

    def forward(self, rows: Tensor, packed: Packed, dropout: Dropout) -> Tensor:
        attended = self.attention["self"](rows, packed, dropout.attention)
        rows = self.attention["output"](attended, rows, dropout.hidden)
        widened = F.gelu(self.intermediate["dense"](rows))
        closed: Tensor = self.output(widened, rows, dropout.hidden)
        return closed


class Bert(Transformer):
    """BERT, MiniLM and, counting positions from `position_offset`, RoBERTa, XLM-R (multilingual E5) and CamemBERT."""

    def __init__(self, shape: BertShape, position_offset: int = 0) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape, position_offset)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))})

    def forward(self, packed: Packed, dropout: Dropout) -> Tensor:
        rows: Tensor = self.embeddings(packed, dropout.within(self.embeddings).hidden)
        for layer in self.layers:
            rows = layer(rows, packed, dropout.within(layer))
        return rows

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.encoder["layer"].children())


def pool_mean(rows: Tensor, packed: Packed) -> Tensor:
    """Each text's mean over its tokens, (N, W), in the order in which the texts were given."""
    return torch.cat([group.mean(dim=1) for group in packed.split(rows)])[packed.restore]


def pool_cls(rows: Tensor, packed: Packed) -> Tensor:
    """Each text's first token, (N, W), in the order in which the texts were given."""
    return torch.cat([group[:, 0] for group in packed.split(rows)])[packed.restore]


def pool_last(rows: Tensor, packed: Packed) -> Tensor:
    """Each text's last token, (N, W), in the order in which the texts were given."""
    return torch.cat([group[:, -1] for group in packed.split(rows)])[packed.restore]
