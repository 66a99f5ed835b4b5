"""Attention of texts that are equally long, at the speed of the CPU's caches also where it drops.

torch's own kernels drop in no fused way on a CPU: they write every weight out several times, and draw their mask one
Bernoulli number after another. Here a few texts are taken at a time, so that their weights never leave the caches, and
the backward pass computes the weights again: only the mask of what was dropped is kept, a byte for each weight.

Letters: C texts, L their length, H heads, D width of a head.

Source of the backward pass: Dao et al. 2022, "FlashAttention", appendix B.2, without its tiling of L.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from encoders.dropout import kept

#: Weights of so many bytes are worked on at a time, unless those of one text are more.
_BYTES_AT_ONCE = 1 << 20


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, bias: Tensor | None = None) -> Tensor:
    """(C, L, H, D) each, to (C·L, H·D); `bias` (H, L, L) is added to the logits."""
    if dropout > 0.0 and query.device.type == "cpu" and query.dtype == torch.float32:
        mixed: Tensor = _Dropping.apply(query, key, value, dropout, bias)  # type: ignore[no-untyped-call]
        return mixed.flatten(2).flatten(0, 1)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, dropout_p=dropout
    )
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


class _Dropping(torch.autograd.Function):
    """Attention whose weights are dropped with a probability; in float32 and on the CPU.

    The numbers come from torch's global generator, as those of `encoders.dropout`.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, probability: float, bias: Tensor | None) -> Tensor:
        texts, length, heads, _ = query.shape
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        keep, ctx.factor = kept((texts, heads, length, length), probability)
        for part in _parts(query):
            weights = _weights(query[part], key[part], bias).mul_(keep[part])
            mixed[part] = torch.matmul(weights, value[part].transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(query, key, value, keep, bias)
        return mixed.mul_(ctx.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keep, bias = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(each) for each in (query, key, value))
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[4] else None
        scale = query.shape[-1] ** -0.5
        for part in _parts(query):
            gradient = gradients[0][part].transpose(1, 2) * ctx.factor
            weights = _weights(query[part], key[part], bias)
            of_value[part] = torch.matmul((weights * keep[part]).transpose(2, 3), gradient).transpose(1, 2)
            of_weights = torch.matmul(gradient, value[part].permute(0, 2, 3, 1)).mul_(keep[part])
            of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if of_bias is not None:
                of_bias += of_logits.sum(dim=0)
            of_logits.mul_(scale)
            of_query[part] = torch.matmul(of_logits, key[part].transpose(1, 2)).transpose(1, 2)
            of_key[part] = torch.matmul(of_logits.transpose(2, 3), query[part].transpose(1, 2)).transpose(1, 2)
        return of_query, of_key, of_value, None, of_bias


def _parts(query: Tensor) -> Iterator[slice]:
    texts, length, heads, _ = query.shape
    at_once = max(1, _BYTES_AT_ONCE // (heads * length * length * query.element_size()))
    return (slice(start, start + at_once) for start in range(0, texts, at_once))


def _weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """(c, L, H, D) of some texts, to their weights (c, H, L, L), each row of which adds up to 1."""
    scaled = query.transpose(1, 2) * query.shape[-1] ** -0.5
    logits = torch.matmul(scaled, key.permute(0, 2, 3, 1))
    return torch.softmax(logits if bias is None else logits.add_(bias), dim=-1)
