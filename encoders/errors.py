"""Everything that can be wrong with a model, before a single input is read.

EncoderError
├── UnknownModelError             no base model has this name
├── WeightsNotInstalledError      the name is known, its weights are not on this machine
├── ChecksumError                 the weights are not the bytes that were promised
├── UnsafeFolderError             the folder holds something that a model does not need
├── UnsupportedArchitectureError  a model of a kind that cannot be run here
├── MissingExtraError             it could be run, with a library that is not installed
├── AdaptationError               it cannot be trained in the way that was asked for
└── NonFiniteWeightsError         NaN or infinity among the weights
"""

from __future__ import annotations


class EncoderError(Exception):
    """A model cannot be used; the message says which, why, and what to do."""


class UnknownModelError(EncoderError):
    """No base model has this name."""


class WeightsNotInstalledError(EncoderError):
    """The base model is known, but its weights are not on this machine."""


class ChecksumError(EncoderError):
    """The weights are not the bytes that were promised."""


class UnsafeFolderError(EncoderError):
    """A model folder holds something that a model does not need."""


class UnsupportedArchitectureError(EncoderError):
    """The folder is sound, but holds a model of a kind that cannot be run here."""


class MissingExtraError(EncoderError):
    """A library that this model or this training needs is not installed; the message names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs a library that is not installed: pip install 'likeness[{extra}]'")


class AdaptationError(EncoderError):
    """The model cannot be trained in the way that was asked for."""


class NonFiniteWeightsError(EncoderError):
    """NaN or infinity among the weights: every embedding would be NaN."""
