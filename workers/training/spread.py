"""How a batch's embeddings are spread over the sphere. For unit rows z_1 … z_n of width D:

    alignment        mean of |z_i − z_p|² over the pairs that are alike = 2 − 2·(their mean cosine); 0 is perfect
    uniformity       log of the mean of exp(−2 |z_i − z_j|²) over all pairs i ≠ j; 0 for one point, lower is more even
    effective rank   exp(−Σ p_k log p_k) with p_k = σ_k / Σ σ over the singular values of the table (n, D):
                     in how many directions it really extends, from 1 to min(n, D)

Sources: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere" (α = 2, t = 2); Roy and Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

#: Both are taken over this many rows of a batch at most, evenly chosen: the eigenvalues of a matrix of 256 · 256
#: take some 20 ms on one CPU core, those of 128 · 128 2.6 ms.
ROWS = 256


@dataclass(frozen=True)
class Spread:
    """What the module's formulas give for a batch."""

    uniformity: float
    effective_rank: float
    directions: int  # the largest effective rank there could be


def spread(embeddings: Tensor) -> Spread:
    """Of embeddings (N, D), N ≥ 2, of any lengths."""
    count = min(len(embeddings), ROWS)
    chosen = torch.arange(count, device=embeddings.device) * len(embeddings) // count
    # float64: the square root of an eigenvalue that should be 0 would be 3e-4 of the largest in float32.
    z = normalize(embeddings.detach()[chosen].double(), dim=1)
    cosines = z @ z.T
    uniformity = _uniformity(cosines)
    # Singular values of z are the roots of the eigenvalues of z zᵀ and of zᵀ z: the smaller of the two serves.
    gram = cosines if count <= z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum()
    rank = torch.special.entr(shares).sum().exp()
    even, directions = torch.stack([uniformity, rank]).tolist()
    return Spread(uniformity=even, effective_rank=directions, directions=len(gram))


def alignment(positive_cosine: float) -> float:
    """From the mean cosine of the pairs that are alike."""
    return 2.0 - 2.0 * positive_cosine


def _uniformity(cosines: Tensor) -> Tensor:
    """|z_i − z_j|² = 2 − 2·cos: from the cosines (n, n) of unit rows."""
    n = len(cosines)
    potentials = (4.0 * cosines - 4.0).fill_diagonal_(-torch.inf)
    return torch.logsumexp(potentials.flatten(), dim=0) - torch.log(cosines.new_tensor(n * (n - 1)))
