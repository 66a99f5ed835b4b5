from __future__ import annotations

import pytest
import torch

from encoders.dropout import dropout, dropout_and_add


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropped_share_and_expectation_are_as_asked(probability: float) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 999), probability)
    assert float((found == 0).float().mean()) == pytest.approx(probability, abs=2e-3)
    assert float(found.max()) == pytest.approx(1 / (1 - probability), rel=1e-4)
    assert float(found.mean()) == pytest.approx(1, abs=0.01)


def test_each_position_is_dropped_alike() -> None:
    """Four draws share one random word: none of the four may differ from the others."""
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(100_000, 4), 0.1) == 0).float()
    assert dropped.mean(dim=0).tolist() == pytest.approx([0.1] * 4, abs=5e-3)
    assert torch.corrcoef(dropped.T).fill_diagonal_(0).abs().max() < 0.02


def test_a_seed_repeats_the_mask() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(torch.ones(7, 3), 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_no_dropout_is_the_input_itself() -> None:
    rows = torch.ones(2)
    assert dropout(rows, 0.0) is rows


def test_the_gradient_passes_where_the_value_did() -> None:
    rows = torch.ones(50, 50, requires_grad=True)
    found = dropout(rows, 0.3)
    found.sum().backward()
    assert torch.equal(rows.grad, found.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropping_and_adding_is_both_one_after_the_other(probability: float, dtype: torch.dtype) -> None:
    rows, residual = torch.randn(50, 40, dtype=dtype, requires_grad=True), torch.randn(50, 40, requires_grad=True)
    found = []
    for both in (lambda: dropout(rows, probability) + residual, lambda: dropout_and_add(rows, residual, probability)):
        torch.manual_seed(0)
        together = both()
        found.append((together, *torch.autograd.grad(together.square().sum(), (rows, residual))))
    for apart, at_once in zip(*found, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(apart, at_once, rtol=tolerance, atol=tolerance)
