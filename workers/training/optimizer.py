"""What moves the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from encoders.loading import AnyEncoder
from workers.training.config import TrainingConfig
from workers.training.matryoshka import AnyLoss

#: A learnable temperature's learning rate over that of the weights. AdamW moves a parameter by about the learning
#: rate a step: log τ has to go a distance of 1 or so in some hundred steps, weights a thousandth of that.
TEMPERATURE_RATE_FACTOR = 100.0


def adamw(encoder: AnyEncoder, loss: AnyLoss, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only: biases and LayerNorms have one axis.

    An adapter's matrices are what it adds to the identity, so it decays towards the vectors as they came.

    Groups carry a `rate_factor`, by which a step's learning rate is to be multiplied.
    """
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
        {"params": list(loss.parameters()), "weight_decay": 0.0, "rate_factor": TEMPERATURE_RATE_FACTOR},
    ]
    # Fused AdamW takes 16–23 ms for MiniLM's 23 million weights on 2 CPU cores, a plain loop 67–100 ms.
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
