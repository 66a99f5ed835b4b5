"""A packed MPNet (Song et al. 2020): BERT without token types, with a bias on attention by relative position.

Letters as in `encoders/bert.py`. Modules are named so that `state_dict()` has the published names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.attention import attend
from encoders.bert import Dropout, Packed, in_one_row
from encoders.dropout import dropout as drop
from encoders.dropout import dropout_and_add
from encoders.transformer import Transformer

# As far as relative positions are told apart; no published MPNet has another limit, nor a setting for it.
_FARTHEST = 128


@dataclass(frozen=True)
class MpnetShape:
    """The sizes in `config.json`; the names are that file's own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    relative_attention_num_buckets: int
    layer_norm_eps: float


class Embeddings(nn.Module):
    def __init__(self, shape: MpnetShape, position_offset: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.position_offset = position_offset

    def forward(self, packed: Packed, dropout: float) -> Tensor:
        positions = packed.positions + self.position_offset
        rows = self.word_embeddings(packed.token_ids) + self.position_embeddings(positions)
        return drop(self.LayerNorm(rows), dropout)


class SelfAttention(nn.Module):
    def __init__(self, shape: MpnetShape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.q, self.k, self.v, self.o = (nn.Linear(shape.hidden_size, shape.hidden_size) for _ in range(4))

    def forward(self, rows: Tensor, packed: Packed, biases: list[Tensor], dropout: float) -> Tensor:
        parts = (
            packed.split(projected.unflatten(-1, (self.heads, -1)))
            for projected in (self.q(rows), self.k(rows), self.v(rows))
        )
        groups = zip(*parts, biases, strict=True)
        mixed: Tensor = self.o(in_one_row([attend(q, k, v, dropout, bias) for q, k, v, bias in groups]))
        return mixed


class Layer(nn.Module):
    def __init__(self, shape: MpnetShape) -> None:
        super().__init__()
        width, epsilon = shape.hidden_size, shape.layer_norm_eps
        self.attention = nn.ModuleDict({"attn": SelfAttention(shape), "LayerNorm": nn.LayerNorm(width, eps=epsilon)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.intermediate_size)})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(shape.intermediate_size, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
        )

    def forward(self, rows: Tensor, packed: Packed, biases: list[Tensor], dropout: Dropout) -> Tensor:
        attended = self.attention["attn"](rows, packed, biases, dropout.attention)
        rows = self.attention["LayerNorm"](dropout_and_add(attended, rows, dropout.hidden))
        narrowed = self.output["dense"](F.gelu(self.intermediate["dense"](rows)))
        closed: Tensor = self.output["LayerNorm"](dropout_and_add(narrowed, rows, dropout.hidden))
        return closed


class Mpnet(Transformer):
    def __init__(self, shape: MpnetShape, position_offset: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape, position_offset)
        self.encoder = nn.ModuleDict(
            {
                "relative_attention_bias": nn.Embedding(
                    shape.relative_attention_num_buckets, shape.num_attention_heads
                ),
                "layer": nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers)),
            }
        )

    def forward(self, packed: Packed, dropout: Dropout) -> Tensor:
        rows: Tensor = self.embeddings(packed, dropout.within(self.embeddings).hidden)
        biases = [self._bias(length) for _, length in packed.groups]
        for layer in self.layers:
            rows = layer(rows, packed, biases, dropout.within(layer))
        return rows

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.encoder["layer"].children())

    def _bias(self, length: int) -> Tensor:
        """(H, L, L) by how far the key stands after the query."""
        table = self.encoder["relative_attention_bias"].get_parameter("weight")
        positions = torch.arange(length, device=table.device)
        buckets = _bucket(positions[None, :] - positions[:, None], len(table))
        return table[buckets].permute(2, 0, 1)


def _bucket(distance: Tensor, buckets: int) -> Tensor:
    """Which row of the table stands for a distance: half of them for each direction, exact near, logarithmic far.

    Source: Raffel et al. 2020 (T5), in the form that MPNet's weights were trained with.
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    logarithm = torch.log(far.clamp_min(1).float() / exact) / math.log(_FARTHEST / exact) * (half - exact)
    rows = torch.where(far < exact, far, (exact + logarithm.long()).clamp_max(half - 1))
    return rows + half * (distance > 0)
