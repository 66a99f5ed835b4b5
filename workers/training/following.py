"""What the processes of a training do that don't lead it: what rank 0 tells them to.

They know nothing of jobs, and write nothing. Encoder, data and state are what rank 0 says they are: it has read the
checkpoint, if there was one, so that all processes begin with the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from api_schemas.methods import Method
from encoders.loading import AnyEncoder
from storage.tables import Job
from workers.data.prepared import Prepared
from workers.training import starting
from workers.training.config import TrainingConfig
from workers.training.ranks import Order, Ranks
from workers.training.trainer import Trainer

log = structlog.get_logger("likeness.training")

#: What of a job decides which encoder it trains.
_DECISIVE = ("id", "model", "reads", "seed", "method")


def told(job: Job, folder: Path | None, training: Prepared) -> dict[str, Any]:
    """What goes with Order.PREPARE: all that `starting.encoder_of` takes."""
    return {
        "job": {name: getattr(job, name) for name in _DECISIVE},
        "folder": None if folder is None else str(folder),
        "data": str(training.folder),
    }


class Follower:
    """One of these processes."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._encoder: AnyEncoder | None = None
        self._data: dict[str, Prepared] = {}  # by folder

    def follow(self) -> None:
        """Do as told until rank 0 lets this process go. Raises whatever this process alone can't do."""
        while (heard := self._ranks.hear()).order is not Order.LEAVE:
            if heard.order is Order.PREPARE:
                self.prepare(heard.content)
            elif heard.order is Order.TRAIN:
                self.train(heard.content)
        self._ranks.leave()

    def prepare(self, content: dict[str, Any]) -> AnyEncoder:
        """Make the encoder that rank 0 has made; its weights come with each training."""
        job = Job(**content["job"])  # of no session: nobody writes it
        folder = None if content["folder"] is None else Path(content["folder"])
        method = Method(**job.method).contrastive
        self._encoder = starting.encoder_of(job, method, folder, self._opened(content["data"]))
        return self._encoder

    def train(self, content: dict[str, Any]) -> Trainer:
        """Take part in a training, from the state that it goes on from until rank 0 ends it."""
        assert self._encoder is not None  # noqa: S101 (it is prepared first)
        opened = [(self._opened(each["folder"]), each["rows"]) for each in content["data"]]
        datasets = [data if rows is None else data.narrowed(rows.numpy()) for data, rows in opened]
        trainer = Trainer(self._encoder, datasets, TrainingConfig.of_dict(content["config"]), ranks=self._ranks)
        self._encoder.load_state_dict(content["encoder"])
        trainer.load_state_dict(content["state"])
        log.info("training_followed", rank=self._ranks.rank, step=trainer.step, total_steps=trainer.total_steps)
        trainer.follow()
        return trainer

    def _opened(self, folder: str) -> Prepared:
        """A prepared dataset, whose bytes rank 0 has compared with their checksums."""
        if folder not in self._data:
            self._data[folder] = Prepared.open(Path(folder), checksums=False)
        return self._data[folder]
