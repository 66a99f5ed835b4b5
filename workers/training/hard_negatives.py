"""Mined negatives in a run: mined anew before an epoch, kept between, and added to its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training.batches import Batch
from workers.training.mining import Indices, MiningConfig, described, extended, mine
from workers.training.mixing import LABELS_OF_A_DATASET


class HardNegatives:
    """Adds mined negatives to batches, in the order in which training takes them.

    What was mined depends on the weights of that moment, so it is part of a run's state.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        datasets: Sequence[Prepared],
        config: MiningConfig,
        *,
        seed: int,
        say: Callable[[str], None],
        on_mined: Callable[[dict[str, Any]], None] = lambda _mined: None,
    ) -> None:
        """`on_mined` hears what `take_over` takes, each time."""
        self._encoder = encoder
        self._datasets = datasets
        self._config = config
        self._seed = seed
        self._say = say
        self._on_mined = on_mined
        self._mined: dict[int, tuple[int, Indices]] = {}  # by dataset: the epoch it was mined for, and (R, k) items

    def __call__(self, batch: Batch, should_stop: Callable[[], bool]) -> Batch:
        """The batch with the negatives of its rows. Mines first if its epoch is due. Raises MiningStopped."""
        data = self._datasets[batch.source]
        epoch, items = self._mined.get(batch.source, (-1, None))
        due = batch.epoch - batch.epoch % self._config.every_epochs
        if items is None or epoch < due:
            found = mine(self._encoder, data, self._config, seed=self._seed, epoch=due, should_stop=should_stop)
            self._say(described(found, data, self._encoder.tokenizer.decode))
            items = found.items
            self._mined[batch.source] = due, items
            self._on_mined({"source": batch.source, "epoch": due, "items": torch.from_numpy(items)})
        return extended(batch, items, data, source_labels=batch.source * LABELS_OF_A_DATASET)

    def take_over(self, mined: dict[str, Any]) -> None:
        """Use what another process has mined, with the same weights."""
        self._mined[mined["source"]] = mined["epoch"], mined["items"].numpy()

    def state_dict(self) -> dict[str, Any]:
        return {
            str(source): {"epoch": epoch, "items": torch.from_numpy(items)}
            for source, (epoch, items) in self._mined.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mined = {
            int(source): (mined["epoch"], np.asarray(mined["items"], dtype=np.int64)) for source, mined in state.items()
        }
