from __future__ import annotations

import dataclasses

import pytest

from api_schemas.methods import Contrastive
from workers.training.config import LossConfig, TrainingConfig, UnresolvedAutoError

RESOLVED = {
    "loss": {"name": "supcon", "temperature": "learnable", "reduction": "class", "symmetric": False, "memory_size": 9},
    "hyperparameters": {
        "n_epochs": 2,
        "batch_size": 16,
        "learning_rate": 2e-5,
        "max_steps": 7,
        "max_seq_length": 64,
        "micro_batch_size": 4,
        "lr_scheduler": "cosine",
        "precision": "bf16",
        "on_collapse": "stop",
    },
}


def test_takes_over_every_hyperparameter():
    config = TrainingConfig.from_method(Contrastive.model_validate(RESOLVED), seed=3)
    assert config == TrainingConfig(
        loss=LossConfig(name="supcon", temperature="learnable", reduction="class", symmetric=False, memory_size=9),
        n_epochs=2,
        batch_size=16,
        learning_rate=2e-5,
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_steps=7,
        max_seq_length=64,
        seed=3,
        micro_batch_size=4,
        lr_scheduler="cosine",
        precision="bf16",
        on_collapse="stop",
    )


def test_names_what_is_still_auto():
    with pytest.raises(
        UnresolvedAutoError, match="batch_size, learning_rate, max_seq_length, n_epochs, reduction, temp"
    ):
        TrainingConfig.from_method(Contrastive(), seed=0)


def test_is_frozen():
    config = TrainingConfig.from_method(Contrastive.model_validate(RESOLVED), seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
