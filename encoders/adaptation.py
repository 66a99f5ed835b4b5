"""What of an encoder is trained, and what is put on top of it first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders import lora
from encoders.errors import AdaptationError
from encoders.projection import Projection
from encoders.prompts import Prompts
from encoders.text import TextEncoder
from encoders.transformer import is_trained


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """full: all weights. lora: small matrices beside frozen ones. projection: a linear map after a frozen encoder."""

    train: Literal["full", "lora", "projection"] = "full"
    freeze_layers: int = 0  # with the embeddings, from the first; 0 freezes nothing
    lora_rank: int = 8
    lora_alpha: float = 16.0  # what the product is scaled by, over the rank
    lora_dropout: float = 0.0
    projection_dim: int | None = None  # None: no projection, or where it is what is trained one of the same width
    pooling: Literal["mean", "cls", "last"] | None = None  # None: the encoder's own
    prompts: Prompts | None = None  # None: the encoder's own
    matryoshka_dims: tuple[int, ...] = ()

    def prepare(self, encoder: TextEncoder, *, seed: int) -> None:
        """Make an encoder ready to be trained so. Raises AdaptationError, MissingExtraError."""
        encoder.pooling = self.pooling or encoder.pooling
        encoder.prompts = self.prompts or encoder.prompts
        self._project(encoder, seed)
        self._freeze(encoder)
        if self.train == "lora":
            lora.add(
                encoder.transformer,
                rank=self.lora_rank,
                alpha=self.lora_alpha,
                dropout=self.lora_dropout,
                seed=seed,
            )
            encoder.to(encoder.device)
        if not is_trained(encoder):
            raise AdaptationError("Nothing of the model is left to be trained; freeze fewer layers.")
        encoder.matryoshka_dims = self.matryoshka_dims
        if self.matryoshka_dims and max(self.matryoshka_dims) > encoder.dimension:
            raise AdaptationError(f"matryoshka_dims go up to {encoder.dimension}, which is all that a vector has.")

    def _project(self, encoder: TextEncoder, seed: int) -> None:
        if self.projection_dim is None and (self.train != "projection" or encoder.projection):
            return
        dimension = self.projection_dim or encoder.dimension
        if encoder.projection is None:
            width = encoder.transformer.word_embeddings.embedding_dim
            encoder.projection = Projection.fresh(width, dimension, seed=seed).to(encoder.device)
        elif encoder.projection.dimension != dimension:
            raise AdaptationError(
                f"The model has a projection to {encoder.dimension} dimensions already; leave projection_dim out."
            )

    def _freeze(self, encoder: TextEncoder) -> None:
        if self.train == "projection":
            encoder.transformer.requires_grad_(False)
            return
        try:
            encoder.transformer.freeze(self.freeze_layers)
        except ValueError as error:
            raise AdaptationError(f"freeze_layers is {self.freeze_layers}, and {error}.") from error
