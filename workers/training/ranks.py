"""The processes that train together: who they are, which part of a batch each has, and what they tell one another.

Each has a rank. Rank 0 leads: it alone talks to the database, evaluates, and writes checkpoints and models; the
others wait for its orders (`workers.training.following`) and take its steps. They meet in three places:

    orders     a key in a store for each. Rank 0 never waits here, and the others as long as it has other things to do;
               that it is still there is the launcher's business, which ends all when one ends
    steps      embeddings and gradients, between devices: by NCCL, or Gloo on CPUs. All processes take part or none, so
               whoever waits longer than STEP_PATIENCE gives up
    numbers    the same for counts, and for a run's state, between CPUs by Gloo
"""

from __future__ import annotations

import enum
import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, Self

import numpy as np
import structlog
import torch
import torch.distributed as dist
from torch import Tensor, nn

from storage.processes import die_with_parent
from workers.training import state_files
from workers.training.batches import Batch
from workers.training.distributed import average_gradients, gather_rows
from workers.training.lack_of_memory import is_lack_of_memory
from workers.training.launcher import LISTENER

log = structlog.get_logger("likeness.training")

#: How long a process may be behind the others of its step: one that reads its data first, or halves its micro-batch.
STEP_PATIENCE = timedelta(minutes=10)
#: Who waits for an order asks again so often, without an end.
_ORDER_PATIENCE = timedelta(minutes=5)
#: Of rank 0, until the others have heard that they may leave. Those who don't are ended with it.
_FAREWELL_PATIENCE = timedelta(seconds=5)


class Order(enum.IntEnum):
    """What rank 0 tells the others to do."""

    PREPARE = 0  # make the encoder; with what it is made from
    TRAIN = 1  # begin to take steps; with the config, the rows, and the state to go on from
    MINED = 2  # take over mined negatives
    STEP = 3
    END = 4  # no more steps of this run
    LEAVE = 5


class Heard(NamedTuple):
    """An order and what it says, made of what `workers.training.state_files` knows."""

    order: Order
    content: Any


class OutOfMemoryTogether(MemoryError):  # noqa: N818 (reads as what happened)
    """Memory ran out in some process, at a point where every process gets to know it."""

    def __init__(self) -> None:
        super().__init__("Memory ran out in one of the processes.")


class Ranks:
    """The processes of a training as one of them sees them; as it is made, there is this one only."""

    def __init__(self) -> None:
        self.rank = 0
        self.count = 1
        self._numbers: dist.ProcessGroup | None = None
        self._orders: Any = None  # a TCPStore
        self._given = 0  # orders

    @classmethod
    def joined(cls) -> Self:
        """Meet those that `workers.training.launcher` or torchrun has started beside this one, if any.

        With fewer GPUs than processes, this one is alone, and all but rank 0 have nothing to do: their rank is kept.
        """
        ranks = cls()
        if not (LISTENER in os.environ or dist.is_torchelastic_launched()):
            return ranks
        die_with_parent(signal.SIGKILL)  # torchrun lets its processes live on
        rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        ranks.rank = rank
        if torch.cuda.is_available():
            if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
                log.warning("too_few_gpus", processes=count, gpus=torch.cuda.device_count())
                return ranks
            torch.cuda.set_device(local)
        ranks.meet(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, count, listener=_listener(rank))
        return ranks

    def meet(self, host: str, port: int, rank: int, count: int, *, listener: int | None = None) -> None:
        """Become one of `count` processes that meet at a TCP store; it is served here if there is a `listener`."""
        store = _connected(host, port, listener)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=STEP_PATIENCE)
        self._numbers = dist.new_group(backend="gloo", timeout=STEP_PATIENCE)
        # A connection of its own: one that waits is closed to everybody else.
        self._orders = _connected(host, port)
        self.rank, self.count = rank, count

    # Orders

    def tell(self, order: Order, content: Any = None) -> None:
        """As rank 0: give an order. Nothing is told where nobody else is."""
        if self._orders is None:
            return
        skeleton, tensors = state_files.taken_apart(content)
        shapes = {name: [str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors.items()}
        self._given += 1
        self._orders.set(_key(self._given), json.dumps([order, skeleton, shapes]))
        self._orders.delete_key(_key(self._given - 2))  # with what came after it, everybody has heard it
        for tensor in tensors.values():
            self._broadcast(tensor)

    def hear(self) -> Heard:
        """As any other: wait for the next order."""
        self._given += 1
        order, skeleton, shapes = json.loads(self._awaited(_key(self._given)))
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
        for tensor in tensors.values():
            self._broadcast(tensor)
        return Heard(Order(order), state_files.put_together(skeleton, tensors))

    @contextmanager
    def leading(self, content: Any) -> Iterator[None]:
        """As rank 0: have the others take the steps that are told in the block. content: of Order.TRAIN."""
        self.tell(Order.TRAIN, content)
        try:
            yield
        finally:
            self.tell(Order.END)

    def leave(self) -> None:
        """Let the others go, or go; from then on this process is alone."""
        if self._orders is not None:
            if self.rank == 0:
                self.tell(Order.LEAVE)
                # The store may end with this process, before they have read it.
                with suppress(dist.DistStoreError):
                    self._orders.wait([_gone(rank) for rank in range(1, self.count)], _FAREWELL_PATIENCE)
            else:
                self._orders.set(_gone(self.rank), "")
            dist.destroy_process_group()
        self.count, self._orders, self._numbers = 1, None, None

    # Steps

    def share(self, batch: Batch) -> Batch:
        """This process' part of a batch: about as many rows as each other has, what is alike in them side by side."""
        if self.count == 1:
            return batch
        behind = len(batch.items) - batch.mined
        starts = np.append(np.flatnonzero(batch.asks[:behind]), behind)
        first, last = (self._border(len(starts) - 1, rank) for rank in (self.rank, self.rank + 1))
        mined = slice(*(behind + self._border(batch.mined, rank) for rank in (self.rank, self.rank + 1)))
        kept = np.concatenate([np.arange(starts[first], starts[last]), np.arange(mined.start, mined.stop)])
        return replace(
            batch,
            items=batch.items[kept],
            contents=batch.contents[kept],
            labels=batch.labels[kept],
            asks=batch.asks[kept],
            rows=int(last - first),
            mined=mined.stop - mined.start,
        )

    def largest_share(self, rows: int) -> int:
        """Of so many rows, what the process with the most of them has."""
        return -(-rows // self.count)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which nothing is exchanged. Where memory runs out in it, all processes raise OutOfMemoryTogether.

        Alone, what is raised in it is raised.
        """
        if self.count == 1:
            yield
            return
        lacks = False
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            lacks = True
        # Outside of the handler, whose error holds the frames that hold the memory.
        if any(self.summed(lacks)):
            raise OutOfMemoryTogether

    def all_lack(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out, and every process has it."""
        return is_lack_of_memory(error) if self.count == 1 else isinstance(error, OutOfMemoryTogether)

    def summed(self, *numbers: int) -> list[int]:
        """Each number summed over all processes."""
        if self.count == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(totals, group=self._numbers)
        return list(map(int, totals.tolist()))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `workers.training.distributed.average_gradients`."""
        if self.count > 1:
            average_gradients(parameters)

    def every_row(self, rows: Tensor) -> Tensor:
        """See `workers.training.distributed.gather_rows`."""
        return gather_rows(rows) if self.count > 1 else rows

    def _border(self, rows: int, rank: int) -> int:
        return rows * rank // self.count

    def _broadcast(self, tensor: Tensor) -> None:
        if tensor.numel():
            # As bytes: Gloo doesn't know all types.
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0, group=self._numbers)

    def _awaited(self, key: str) -> bytes:
        while True:
            try:
                self._orders.wait([key], _ORDER_PATIENCE)
            except dist.DistStoreError:  # the time is over; that nobody is there any more is another error
                continue
            return bytes(self._orders.get(key))


def _connected(host: str, port: int, listener: int | None = None) -> Any:
    """A TCP store, without waiting for the others that will connect."""
    return dist.TCPStore(  # type: ignore[attr-defined]  # it is there, and not said to be
        host,
        port,
        world_size=None,
        is_master=listener is not None,
        timeout=STEP_PATIENCE,
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def _key(number: int) -> str:
    return f"likeness order {number}"


def _gone(rank: int) -> str:
    return f"likeness rank {rank} is gone"


def _listener(rank: int) -> int | None:
    """Where rank 0 serves the store, unless torchrun does."""
    return int(os.environ[LISTENER]) if rank == 0 and LISTENER in os.environ else None
