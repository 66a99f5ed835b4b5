"""Whether the faster trainer learns as much: held-out mean reciprocal rank of both, over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.train_contestants import TITLES, Name, Precisions, Train, Training
from bench.train_data import demo, texts
from encoders.text import TextEncoder
from service.demo.docstrings import Pair
from service.demo.progress import Report
from service.demo.retrieval import Difference, difference, places

BATCH_SIZE = 64


def reciprocal_ranks(encoder: TextEncoder, asked: Sequence[Pair]) -> np.ndarray:
    """Of each anchor's own positive among those of all, (asked,)."""
    anchors, positives = (encoder.encode(texts) for texts in zip(*asked, strict=True))
    found: np.ndarray = places(anchors, positives).reciprocal()
    return found


@dataclass(frozen=True)
class Quality:
    """Mean reciprocal rank by contestant and seed, and the difference of the seeds' means: Likeness less the peer."""

    pairs: int
    questions: int
    by_seed: dict[Name, list[float]]
    difference: Difference


def compare_quality(
    pairs: int, seeds: Sequence[int], *, train: Train, precisions: Precisions, report: Report
) -> Quality:
    """Train both for one epoch on the first `pairs` pairs, with each seed, and ask for the pairs of held-out modules.

    The interval is over the questions, each with its mean over the seeds.
    """
    held_out = demo().test
    asked = tuple(pair.anchor for pair in held_out) + tuple(pair.positive for pair in held_out)
    learned = texts("short", pairs)
    reciprocal: dict[Name, list[np.ndarray]] = {name: [] for name in TITLES}
    for number, seed in enumerate(seeds):
        for turn, name in enumerate(TITLES):
            report(2 * number + turn, 2 * len(seeds), f"{TITLES[name]}, seed {seed}")
            training = Training(learned, BATCH_SIZE, None, seed=seed, precisions=precisions, asked=asked)
            vectors = train(name, training).vectors
            assert vectors is not None
            reciprocal[name].append(places(vectors[: len(held_out)], vectors[len(held_out) :]).reciprocal())
    report(2 * len(seeds), 2 * len(seeds), "")
    means = {name: np.mean(values, axis=0) for name, values in reciprocal.items()}
    return Quality(
        pairs=pairs,
        questions=len(held_out),
        by_seed={name: [float(values.mean()) for values in every] for name, every in reciprocal.items()},
        difference=difference("MRR", means["peer"], means["likeness"]),
    )
