"""Attention that drops: the same as written out with the same mask, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import attention
from encoders.attention import attend
from encoders.dropout import kept

TEXTS, LENGTH, HEADS, WIDTH = 5, 7, 3, 4


def written_out(query: Tensor, key: Tensor, value: Tensor, probability: float, bias: Tensor | None) -> Tensor:
    """The definition, in autograd's hands; draws as many random numbers as `attend`."""
    keep, factor = kept((TEXTS, HEADS, LENGTH, LENGTH), probability)
    logits = torch.einsum("clhd,cmhd->chlm", query, key) / WIDTH**0.5
    weights = torch.softmax(logits if bias is None else logits + bias, dim=-1) * keep * factor
    return torch.einsum("chlm,cmhd->clhd", weights, value).reshape(TEXTS * LENGTH, HEADS * WIDTH)


def gradients(found: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(9)
    return list(torch.autograd.grad((found * torch.randn_like(found)).sum(), inputs))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("bytes_at_once", [1, 2 * HEADS * LENGTH * LENGTH * 4, 1 << 20])
def test_value_and_gradient_are_the_definitions(with_bias: bool, bytes_at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(attention, "_BYTES_AT_ONCE", bytes_at_once)
    torch.manual_seed(0)
    inputs = [torch.randn(TEXTS, LENGTH, HEADS, WIDTH, requires_grad=True) for _ in range(3)]
    bias = torch.randn(HEADS, LENGTH, LENGTH, requires_grad=True) if with_bias else None
    every = [*inputs, *([] if bias is None else [bias])]
    found = []
    for work in (attend, written_out):
        torch.manual_seed(1)
        value = work(*inputs, 0.3, bias)
        found.append([value, *gradients(value, every)])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_what_needs_no_gradient_gets_none() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(TEXTS, LENGTH, HEADS, WIDTH, requires_grad=True) for _ in range(3))
    bias = torch.randn(HEADS, LENGTH, LENGTH)
    attend(query, key, value, 0.3, bias).sum().backward()
    assert query.grad is not None
    assert bias.grad is None


def test_without_dropout_it_is_torchs_own() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(TEXTS, LENGTH, HEADS, WIDTH) for _ in range(3))
    own = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    assert torch.equal(attend(query, key, value, 0.0), own.transpose(1, 2).reshape(TEXTS * LENGTH, HEADS * WIDTH))
