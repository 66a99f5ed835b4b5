"""Pairs to train on, of three kinds of length: short, with a long tail, and long ones of one length.

All are real: what the standard library calls its things, and what it says they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple, get_args

from encoders.tokenizer import TextTokenizer
from service.demo.docstrings import Dataset, Pair, split, words
from service.demo.library import Documented, standard_library
from workers.data.preparation import Tokenizer, prepare
from workers.data.prepared import Prepared
from workers.data.row import Row

Kind = Literal["short", "tail", "long"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LONG_WORDS = 160  # of English, more than LONG_TOKENS tokens
LONG_TOKENS = 120


class Texts(NamedTuple):
    """Pairs, and how many tokens of a text are read."""

    pairs: Sequence[Pair]
    max_seq_length: int


def texts(kind: Kind, rows: int) -> Texts:
    """`rows` pairs, again from the first where there are fewer."""
    if kind == "short":
        return Texts(_first(demo().train, rows), 24)
    documented = [item for item in _standard_library() if len(item.docstring.split()) > 2]
    if kind == "tail":
        # A name and all of its docstring: 50 tokens on average, one in ten above 110, and a few above 256.
        whole = [Pair(words(item.name), " ".join(item.docstring.split())) for item in documented]
        return Texts(_first(whole, rows), 256)
    every = [word for item in documented for word in item.docstring.split()]
    runs = [" ".join(every[start : start + LONG_WORDS]) for start in range(0, len(every) - LONG_WORDS, LONG_WORDS)]
    return Texts(_first([Pair(*two) for two in zip(runs[::2], runs[1::2], strict=False)], rows), LONG_TOKENS)


@cache
def demo() -> Dataset:
    """The pairs of `make demo`."""
    return split(_standard_library())


@cache
def _standard_library() -> tuple[Documented, ...]:
    """Read once, which takes seconds."""
    return tuple(standard_library())


def rows(pairs: Sequence[Pair]) -> Iterator[Row]:
    """The pairs as a file of them is read."""
    return (Row("pairs", tuple(pair)) for pair in pairs)


def prepared(texts: Texts, tokenizer: Tokenizer, folder: Path) -> Prepared:
    """The pairs as Likeness' trainer reads them."""
    return prepare(rows(texts.pairs), folder, tokenizer=tokenizer, limit=texts.max_seq_length)


def tokens_of(texts: Texts, tokenizer: TextTokenizer) -> tuple[float, int]:
    """Tokens that are read of a text: on average, and of the longest."""
    every = tokenizer([text for pair in texts.pairs for text in pair])
    lengths = [min(len(one.ids), texts.max_seq_length) for one in every]
    return mean(lengths), max(lengths)


def _first(pairs: Sequence[Pair], rows: int) -> list[Pair]:
    return list(islice(cycle(pairs), rows))
