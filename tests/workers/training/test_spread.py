from __future__ import annotations

import math

import pytest
import torch

from workers.training.spread import ROWS, alignment, spread


def rows(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "d"), [(9, 5), (5, 9)])
def test_uniformity_and_effective_rank_are_their_definitions(n, d):
    table = rows(n, d) * torch.arange(1, n + 1)[:, None]  # lengths don't matter
    z = (table / table.norm(dim=1, keepdim=True)).tolist()
    pairs = [math.dist(z[i], z[j]) ** 2 for i in range(n) for j in range(n) if i != j]
    singular = torch.linalg.svdvals(torch.tensor(z)).tolist()
    shares = [value / sum(singular) for value in singular]
    found = spread(table)
    assert found.uniformity == pytest.approx(math.log(sum(math.exp(-2 * pair) for pair in pairs) / len(pairs)))
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)
    assert found.directions == min(n, d)


def test_the_ends_of_the_scales():
    one_point = spread(torch.ones(6, 4))
    assert (one_point.uniformity, one_point.effective_rank) == pytest.approx((0.0, 1.0), abs=1e-5)
    assert spread(torch.eye(6)).effective_rank == pytest.approx(6.0)
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).uniformity == pytest.approx(-8.0)


def test_of_a_large_batch_an_even_choice_of_rows():
    table = rows(5 * ROWS, 8)
    assert spread(table) == spread(table[::5])


def test_alignment_is_the_mean_squared_distance_of_unit_rows():
    z = torch.nn.functional.normalize(rows(8, 5).double(), dim=1)
    cosine = (z[:4] * z[4:]).sum(dim=1).mean().item()
    assert alignment(cosine) == pytest.approx((z[:4] - z[4:]).square().sum(dim=1).mean().item())
