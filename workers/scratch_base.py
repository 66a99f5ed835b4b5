"""What a job from scratch starts from: a tokenizer trained on its texts, and random weights.

The tokenizer reads the rows that are trained on and no others: which these are is decided before there is a token, as
it will be decided again, from the contents of the rows and the job's seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from api_schemas.methods import ScratchOptions
from encoders.prompts import Prompts
from encoders.tokenizer_training import SMALLEST_VOCABULARY, train_tokenizer
from encoders.untrained import UntrainedShape, write_untrained
from workers.data.prepared import Prepared
from workers.data.prompted import prompted
from workers.data.row import Row
from workers.untokenized import characters_of

#: What a tokenizer is trained on at most: of larger files every so many-th row, since more would hardly change it.
MOST_CHARACTERS = 100_000_000
_ROWS_AT_ONCE = 1000


class Source(NamedTuple):
    """A training file: all of its rows in order, and the same under `Untokenized`, narrowed to those trained on."""

    rows: Iterator[Row]
    trained_on: Prepared


class Made(NamedTuple):
    """What came of it."""

    tokens: int  # of the vocabulary
    rows: int  # that the tokenizer was trained on
    weights: int

    @property
    def has_pieces(self) -> bool:
        """Whether the tokenizer learned any piece of a word."""
        return self.tokens > SMALLEST_VOCABULARY

    def told(self) -> str:
        """For the job's events."""
        encoder = f"made an encoder of {self.weights / 1e6:.1f} million random weights"
        if self.has_pieces:
            return f"Trained a tokenizer of {self.tokens} tokens on {self.rows} rows, and {encoder}"
        return (
            f"No piece of a word occurs twice in {self.rows} rows, so texts are read byte by byte; {encoder}. It can "
            "learn little from so few different words: give more rows, or name a model that has learned words already."
        )


def make(folder: Path, sources: Sequence[Source], prompts: Prompts, options: ScratchOptions, *, seed: int) -> Made:
    """Write tokenizer and untrained weights into an empty folder, as transformers saves a model.

    The same arguments give the same bytes. Raises OSError, and whatever reading the rows raises.
    """
    chosen = rows_to_read([source.trained_on for source in sources])
    texts = _texts(sources, chosen, prompts)
    tokenizer = train_tokenizer(texts, vocabulary_size=options.vocabulary_size)
    shape = UntrainedShape(
        layers=options.layers, hidden_size=options.hidden_size, max_seq_length=options.max_seq_length
    )
    weights = write_untrained(folder, tokenizer, shape, seed=seed)
    return Made(tokenizer.get_vocab_size(), sum(map(np.count_nonzero, chosen)), weights)


def rows_to_read(trained_on: Sequence[Prepared], most_characters: int = MOST_CHARACTERS) -> list[npt.NDArray[np.bool_]]:
    """Which rows of each file the tokenizer is trained on, (R,): those trained on, thinned out evenly if need be."""
    every = max(1, -(-sum(map(characters_of, trained_on)) // most_characters))
    chosen = [np.zeros(len(data), dtype=np.bool_) for data in trained_on]
    for mask, data in zip(chosen, trained_on, strict=True):
        mask[data.rows[::every]] = True
    return chosen


def _texts(sources: Sequence[Source], chosen: Sequence[npt.NDArray[np.bool_]], prompts: Prompts) -> Iterator[list[str]]:
    """The texts of the chosen rows as the encoder will read them, some at a time."""
    some: list[Row] = []
    for source, mask in zip(sources, chosen, strict=True):
        for row, is_chosen in zip(source.rows, mask, strict=True):
            if is_chosen:
                some.append(row)
            if len(some) == _ROWS_AT_ONCE:
                yield prompted(some, prompts)
                some = []
    yield prompted(some, prompts)
