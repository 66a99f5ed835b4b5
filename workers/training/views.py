"""Views: two versions of one text or vector, as positives of each other, where a dataset has no pairs.

    dropout        the same twice; the encoder's dropout makes the difference
    deletion       each word left out with some probability
    span           a run of neighbouring words
    noise          a vector plus Gaussian noise
    masking        a vector with some of its numbers set to 0

Texts are changed as token ids, between their first and their last: so one prepared form serves every kind of view
and every epoch, and nothing is tokenized in training. A word is a token and those that continue it, where the
tokenizer says which these are; elsewhere each token counts as one. What is cut off at the limit before is lost to
all views, which for a text longer than the encoder reads is also what a view on the text would mostly lose.

Each view is drawn from (seed, epoch, item) alone: a run that goes on draws the same.

Sources: Gao et al. 2021, "SimCSE: Simple Contrastive Learning of Sentence Embeddings" (dropout; it finds deletion
and crops of single sentences to be worse); Wu et al. 2020, "CLEAR: Contrastive Learning for Sentence
Representation" (word and span deletion); Izacard et al. 2022, "Unsupervised Dense Information Retrieval with
Contrastive Learning" (independent crops, for retrieval of passages); Yao et al. 2021, "Self-supervised Learning for
Large-scale Item Recommendations" (masking of features).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]  # (length,), framed by one token on each side
Vector = npt.NDArray[np.float32]  # (D,)
Content = TypeVar("Content", Tokens, Vector)
View = Callable[[Content, np.random.Generator], Content]


def apply(
    view: View[Content], contents: Sequence[Content], items: npt.NDArray[np.int64], *, seed: int, epoch: int
) -> list[Content]:
    """A view of each content; items (n,) are their indices. One that occurs again gets the next view of its own."""
    generators = {item: _generator(seed, epoch, item) for item in items.tolist()}
    return [view(content, generators[item]) for content, item in zip(contents, items.tolist(), strict=True)]


def unchanged(content: Content, _rng: np.random.Generator) -> Content:
    """The dropout view."""
    return content


@dataclass(frozen=True, eq=False)
class WordDeletion:
    """Leaves each word out with `probability`, but never all of them. continues: see `TextTokenizer.continues`."""

    probability: float = 0.1
    continues: npt.NDArray[np.bool_] | None = None  # (vocabulary,)

    def __call__(self, content: Tokens, rng: np.random.Generator) -> Tokens:
        words = _words(content, self.continues)
        if not len(words):
            return content
        n = int(words[-1]) + 1
        kept = rng.random(n) >= self.probability
        kept[rng.integers(n)] |= not kept.any()
        return _framed(content, kept[words])


@dataclass(frozen=True, eq=False)
class SpanCrop:
    """Keeps a run of words, as long as a share of the text drawn between `shortest` and `longest`; one at least."""

    shortest: float = 0.5
    longest: float = 0.9
    continues: npt.NDArray[np.bool_] | None = None  # (vocabulary,)

    def __call__(self, content: Tokens, rng: np.random.Generator) -> Tokens:
        words = _words(content, self.continues)
        if not len(words):
            return content
        n = int(words[-1]) + 1
        length = max(1, round(n * rng.uniform(self.shortest, self.longest)))
        start = rng.integers(n - length + 1)
        return _framed(content, (start <= words) & (words < start + length))


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Adds noise of standard deviation `scale` times the vector's root mean square."""

    scale: float = 0.1

    def __call__(self, content: Vector, rng: np.random.Generator) -> Vector:
        level = self.scale * np.sqrt(np.mean(np.square(content, dtype=np.float64)))
        noisy: Vector = (content + level * rng.standard_normal(len(content))).astype(np.float32)
        return noisy


@dataclass(frozen=True, eq=False)
class Masking:
    """Sets each number to 0 with `probability`, but never all of them."""

    probability: float = 0.1

    def __call__(self, content: Vector, rng: np.random.Generator) -> Vector:
        kept = rng.random(len(content)) >= self.probability
        kept[rng.integers(len(kept))] |= not kept.any()
        return np.where(kept, content, np.float32(0))


def _words(content: Tokens, continues: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.int64]:
    """Which word each token between the first and the last is of, from 0; (length − 2,)."""
    inner = content[1:-1]
    if continues is None:
        return np.arange(len(inner))
    begins = ~continues[inner]
    begins[:1] = True
    return np.cumsum(begins) - 1


def _framed(content: Tokens, kept: npt.NDArray[np.bool_]) -> Tokens:
    return np.concatenate([content[:1], content[1:-1][kept], content[-1:]])


def _generator(seed: int, epoch: int, item: int) -> np.random.Generator:
    # A counter-based generator is made for this: any of 2^192 streams of a seed can be begun at once.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, item, epoch, 0]))
