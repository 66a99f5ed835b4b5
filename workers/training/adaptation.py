"""A job's wishes about its encoder, as the encoders take them."""

from __future__ import annotations

from api_schemas.methods import ModelOptions
from encoders.adaptation import Adaptation
from workers.prompts import prompts_asked


def adaptation_of(options: ModelOptions) -> Adaptation:
    return Adaptation(
        train=options.train,
        freeze_layers=options.freeze_layers,
        lora_rank=options.lora.rank,
        lora_alpha=options.lora.alpha,
        lora_dropout=options.lora.dropout,
        projection_dim=options.projection_dim,
        pooling=options.pooling,
        prompts=prompts_asked(options),
        matryoshka_dims=tuple(options.matryoshka_dims or ()),
    )
