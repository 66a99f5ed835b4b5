"""What every architecture has in common: tokens in, their last hidden states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from encoders.bert import Dropout, Packed


class Transformer(nn.Module):
    """The part of an encoder that reads tokens; how their states become one vector is not its matter."""

    #: Whether it spends nothing on padding. Where not, texts of a batch had better be equally long.
    packs = True

    def forward(self, packed: Packed, dropout: Dropout) -> Tensor:
        """The last hidden state of every token, (T, W), in the order of the row."""
        raise NotImplementedError

    @property
    def published(self) -> nn.Module:
        """The module whose weights have the names that they are published under."""
        return self

    @property
    def word_embeddings(self) -> nn.Embedding:
        raise NotImplementedError

    @property
    def layers(self) -> Sequence[nn.Module]:
        """First to last."""
        raise NotImplementedError

    def freeze(self, count: int) -> None:
        """Keep the embeddings and the first `count` layers as they are; 0 freezes nothing.

        Raises ValueError if there are fewer layers.
        """
        if count > len(self.layers):
            raise ValueError(f"there are {len(self.layers)} layers")
        if count == 0:
            return
        after = {id(parameter) for layer in self.layers[count:] for parameter in layer.parameters()}
        below = {id(parameter) for layer in self.layers[:count] for parameter in layer.parameters()}
        # Modules are registered in the order in which data passes them: what comes after the last layer stays free.
        for parameter in self.parameters():
            if id(parameter) in after or not below:
                break
            parameter.requires_grad_(False)
            below.discard(id(parameter))


def is_trained(module: nn.Module) -> bool:
    """Whether any of its weights is."""
    return any(parameter.requires_grad for parameter in module.parameters())
