"""Contrastive losses of a matrix of logits that is never held: its tiles are made, used and overwritten.

Letters: R rows that ask (anchors), C columns they are compared with, D their width, T the side of a tile.
         x (R, D) and y (C, D): s_ij = x_i·y_j are the logits, so |x_i||y_j| = 1/τ for directed rows.
         P(i) columns of i's class, i itself not counted; N(i) columns of other classes, without those known
         to be false negatives; w_i the weight of each pair (i, p).

The loss is Σ_i w_i Σ_{p∈P(i)} ℓ(i, p), with L_i = log Σ_{n∈N(i)} exp(s_in) and

    NT-Xent   ℓ(i, p) = softplus(L_i − s_ip)
    SupCon    ℓ(i, p) = Λ_i − s_ip,  Λ_i = log Σ_{j∈N(i)∪P(i)} exp(s_ij)

Both have a gradient of one form, with a push u_i for each anchor and a pull v_ip for each pair:

    ∂/∂s_in = u_i exp(s_in)    NT-Xent  u_i = w_i Σ_p 1 / (exp(L_i) + exp(s_ip))
                               SupCon   u_i = w_i |P(i)| / exp(Λ_i)
    ∂/∂s_ip = −v_ip            NT-Xent  v_ip = w_i σ(L_i − s_ip)
                               SupCon   v_ip = w_i (1 − |P(i)| exp(s_ip − Λ_i))

So between the tiles and the loss there are only vectors: a first walk over the tiles finds L, the pairs (few, and
side by side once rows are sorted by class, see `layout.py`) give the loss, u and v, and a second walk adds (∂/∂s) y
and (∂/∂s)ᵀ x to the gradients. Both walks see negatives only. When rows are compared with themselves s is symmetric:
the tiles on and above the diagonal serve both their rows and their columns, for about 4·R²·D operations in all;
autograd over the whole matrix takes 6·R²·D. The temperature's gradient needs nothing of its own: it is a factor of x
and y.

Sources: the derivative is elementary; the walk with running log-sums is that of Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", Rabe and Staats 2021, "Self-attention does not need O(n²) memory", and Dao et
al. 2022, "FlashAttention". The losses: see `losses.py`. The walks themselves are in `walk.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.training.comparison import Comparison, Hits
from workers.training.walk import Walk

__all__ = ["KEPT_BYTES", "Comparison", "side_of_tiles", "tiled_loss"]

# Where all tiles fit into this, the second walk finds them ready instead of making them again, which saves a quarter of
# the work: up to 4096 rows in float32. Some of many tiles would save little. A constant: memory stays O((R + C)·D).
KEPT_BYTES = 52 * 2**20


def tiled_loss(
    x: Tensor,
    y: Tensor,
    comparison: Comparison,
    *,
    largest: float,
    scale: float = 1.0,
    tile_size: int | None = None,
    with_hits: bool = False,
) -> tuple[Tensor, Hits | None]:
    """The loss, a scalar with its gradient, in O((R + C)·D + T²) memory, and on demand which anchors hit.

    x (R, D), y (C, D) of one dtype, float32 or float64; y is ignored where the columns are the rows. `scale`
    multiplies both: here it needs no copy of them, and no graph. `largest` bounds all |s_ij|. The gradient is computed
    on the way if x or y asks for one; it has none itself.
    """
    found: list[Hits] | None = [] if with_hits else None
    walked = None if comparison.same else y
    value: Tensor = _Tiled.apply(x, walked, comparison, largest, scale, tile_size, found)  # type: ignore[no-untyped-call]
    return value, found[0] if found else None


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        comparison: Comparison,
        largest: float,
        scale: float,
        tile: int | None,
        found: list[Hits] | None,
    ) -> Tensor:
        gradient = any(ctx.needs_input_grad[:2])
        side = tile or side_of_tiles(x.device)
        hits = found is not None
        walk = Walk(x, y, comparison, largest, scale=scale, side=side, room=KEPT_BYTES, gradient=gradient, hits=hits)
        ctx.scale = scale
        value = walk.run()
        if found is not None:
            found.append(walk.hits())
        if gradient:
            inputs = (x,) if y is None else (x, y)
            ctx.save_for_backward(*inputs, *walk.gradients())
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        (factor,), saved = outputs, ctx.saved_tensors
        inputs, gradients = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        factor = factor * ctx.scale
        scaled = [_ScaledGradient.apply(gradient, factor, *inputs) for gradient in gradients]  # type: ignore[no-untyped-call]
        return (*scaled, *[None] * (7 - len(scaled)))


class _ScaledGradient(torch.autograd.Function):
    """gradient × factor, a function of the inputs too, which says so when it is asked for a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, factor: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return gradient * factor

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:  # noqa: ARG004
        raise RuntimeError(
            "The tiled loss has no second derivative: its gradient is computed with the value, and the tiles "
            'are gone. Use memory="dense" to differentiate twice.'
        )


def side_of_tiles(device: torch.device) -> int:
    """T.

    On the CPU 768: float32, D = 128, 2 cores with 0.5 MB of L2 each and 32 MB of L3 took for 8192 rows 0.43 s with
    256, 0.32 s with 512, 0.30 s with 768 and 0.3 to 0.6 s with 1024, whose power-of-two strides share cache lines.
    Elsewhere 4096, since each tile costs a dozen launches.
    """
    return 768 if device.type == "cpu" else 4096
