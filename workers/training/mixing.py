"""Several datasets in one run.

Dataset i with n_i rows has a share w_i of the steps,

    w_i = n_i^(1/T) / Σ_j n_j^(1/T),

so at T = 1 each row of all files is as likely as any other, and as T grows the files come to count alike. A small
one then goes through more epochs of its own, each shuffled anew, than a large one.

Each batch is of one dataset. Texts of two tasks are told apart by what they are about, or even by how they are
written: as negatives of each other they teach nothing and take the places of those that do.

Sources: Conneau and Lample 2019, "Cross-lingual Language Model Pretraining" (shares by a power of the size);
Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (the
temperature); Li et al. 2023, "Towards General Text Embeddings with Multi-stage Contrastive Learning" (batches of
one source).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from api_schemas.amounts import percent
from workers.data.prepared import Prepared
from workers.training.batches import Batch, Batches, Position

#: Labels of a batch are numbers of rows, items or labels of its dataset, which are fewer than this.
LABELS_OF_A_DATASET = 2**40


class Mixture:
    """The batches of several datasets, or of one, interleaved at random. A position is (step, epoch, batch, epoch, …):

    where the mixture is, and where each of its datasets is. Labels of two datasets are never equal, also where
    they have one name; contents are equal where the texts are.

    total_steps: `epochs` times the batches of all datasets' first epochs, at most max_steps.

    Raises NoBatchError if some dataset makes no batch, and ValueError for a temperature that is not above 0.
    """

    def __init__(
        self,
        datasets: Sequence[Prepared],
        *,
        batch_size: int,
        seed: int,
        epochs: int = 1,
        max_steps: int | None = None,
        temperature: float = 1.0,
        bucket_by_length: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"The temperature of a mixture must be above 0, not {temperature}.")
        self._batches = [
            Batches(
                data, batch_size=batch_size, seed=seed, epochs=epochs, max_steps=max_steps,
                bucket_by_length=bucket_by_length,
            )
            for data in datasets
        ]  # fmt: skip
        steps = sum(batches.total_steps for batches in self._batches)
        self.total_steps = steps if max_steps is None else min(steps, max_steps)
        self.start: Position = (0, *(part for batches in self._batches for part in batches.start))
        self.notices = _notices(self._batches)
        shares = mixing_shares([data.row_count for data in datasets], temperature)
        self._sources = _schedule(shares, self.total_steps, seed)
        #: Steps that each dataset has, (datasets,).
        self.steps: list[int] = np.bincount(self._sources, minlength=len(datasets)).tolist()

    def starting_at(self, position: Position) -> Iterator[Batch]:
        """The batches from a position on, to the last step."""
        step, places = position[0], list(position[1:])
        running = [
            batches.starting_at((places[2 * source], places[2 * source + 1]))
            for source, batches in enumerate(self._batches)
        ]
        for done, source in enumerate(self._sources[step:].tolist(), start=step + 1):
            batch = next(running[source])
            places[2 * source : 2 * source + 2] = batch.after
            own = source * LABELS_OF_A_DATASET
            labels = np.where(batch.labels < 0, batch.labels - own, batch.labels + own)
            yield replace(batch, labels=labels, source=source, after=(done, *places))


def _notices(datasets: Sequence[Batches]) -> list[str]:
    if len(datasets) == 1:
        return datasets[0].notices
    return [f"Training file {number}: {notice}" for number, each in enumerate(datasets, 1) for notice in each.notices]


def mixing_shares(rows: Sequence[int], temperature: float) -> npt.NDArray[np.float64]:
    """w of the module's equation, (datasets,), for datasets of so many rows."""
    # Over the largest: no power of a number up to 1 overflows, however low the temperature.
    weights = (np.asarray(rows, dtype=np.float64) / max(rows)) ** (1 / temperature)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def told_shares(names: Sequence[str], steps: Sequence[int]) -> str:
    """What share of the steps each file has, in a sentence; the numbers are those of the notices."""
    total = sum(steps)
    shares = (
        f"training file {number} ({name}) has {count}, {percent(count / total)}"
        for number, (name, count) in enumerate(zip(names, steps, strict=True), 1)
    )
    return f"Of {total} steps, {'; '.join(shares)}"


def _schedule(shares: npt.NDArray[np.float64], steps: int, seed: int) -> npt.NDArray[np.int16]:
    """Which dataset each step takes its batch from, (steps,): exactly the shares, but for rounding, in random order."""
    exact = shares * steps
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: steps - counts.sum()]] += 1
    sources = np.repeat(np.arange(len(shares), dtype=np.int16), counts)
    np.random.default_rng([seed, len(shares), steps]).shuffle(sources)
    return sources
