"""Encoders in memory: loaded on first use, verified, and dropped when others are used more."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import torch

from api_schemas.errors import LikenessError
from encoders import registry
from encoders.errors import EncoderError
from encoders.folder import WEIGHTS
from encoders.loading import AnyEncoder, load
from encoders.text import TextEncoder
from service.inference.forward import Forward
from service.inference.lanes import Lanes
from service.inference.modes import LARGEST_SHARE, Choice, Mode
from service.model_names import NamedModel
from storage.artifacts import corrupt_model, failing_disk_is_told
from storage.model_folders import ModelFolders

log = structlog.get_logger(__name__)

# Where things lie on this machine is for the log, and not for whoever asks.
_PATH = re.compile(r"(?<![\w./])(/[^\s/'\",;]+)+")
#: How often a damaged model is looked at again, which reads all of it.
_LOOK_AGAIN_SECONDS = 10.0
#: How long a request waits for models that are in use to make room.
_ROOM_SECONDS = 10.0
_LOADS_AT_ONCE = 2


@dataclass(eq=False)
class _Entry:
    """A place for an encoder, from the moment on in which its loading is asked for."""

    loading: asyncio.Future[Forward]
    expected_bytes: int  # what it may take, by its file
    users: int = 0  # requests that are being answered with it
    is_admitted: bool = False  # there is room for it
    is_settled: bool = False  # it runs in the modes that it will run in

    @property
    def forward(self) -> Forward | None:
        return self.loading.result() if _succeeded(self.loading) else None

    @property
    def size_bytes(self) -> int:
        return self.forward.size_bytes if self.forward and self.is_settled else self.expected_bytes


class EncoderPool:
    """Encoders by model name, in so much memory. Belongs to one event loop.

    What is in use is never dropped; a model for which there is no room waits until there is. One that is larger than
    the budget is loaded when no other is there.
    """

    def __init__(
        self,
        folders: ModelFolders,
        *,
        base_models_dir: Path | None,
        memory_bytes: int,
        pinned: Collection[str] = (),
        mode: Mode | None = None,
    ) -> None:
        """pinned: names of models that are never dropped. mode: how passes are computed; None for what is fastest."""
        self._folders = folders
        self._base_models_dir = base_models_dir
        self._memory_bytes = memory_bytes
        self._pinned = frozenset(pinned)
        self._mode = mode
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by last use
        self._looked: dict[str, float] = {}  # when damaged models were looked at here, by the monotonic clock
        self._waiting: list[asyncio.Future[None]] = []  # for anything that may make room
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loading = Lanes(_LOADS_AT_ONCE, name="loading")
        self._choosing = Lanes(1, name="modes")
        self._choices: dict[str, Choice] = {}  # by architecture: models of one are equally fast
        self._filling: set[asyncio.Future[None]] = set()  # held here: the event loop does not
        self.loads = 0
        self.drops = 0

    @asynccontextmanager
    async def using(self, model: NamedModel) -> AsyncIterator[Forward]:
        """A model's forward, which stays in memory for the block. Raises LikenessError as `get` does."""
        entry = await self._entry(model)
        entry.users += 1
        try:
            # Shielded: a client that leaves must not stop the loading that others wait for.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            self._changed()

    async def get(self, model: NamedModel) -> Forward:
        """A model's forward. Raises LikenessError `weights_unavailable`, `artifact_corrupt` or `storage_failed`.

        A model that is withdrawn is refused also where it is in memory, until it is found to be mended.
        """
        async with self.using(model) as forward:
            return forward

    def last_used(self) -> Forward | None:
        """The one that was asked for last among those in memory."""
        return next((entry.forward for entry in reversed(self._entries.values()) if entry.forward), None)

    def in_memory(self, name: str) -> Forward | None:
        """A model's forward, if it is in memory; that is no use of it."""
        entry = self._entries.get(name)
        return entry.forward if entry else None

    def loaded(self) -> Iterator[Forward]:
        """All that are in memory."""
        return (entry.forward for entry in self._entries.values() if entry.forward)

    def has_weights(self, model: NamedModel) -> bool:
        """Whether a base model's folder is on this machine."""
        try:
            registry.locate(model.name, self._base_models_dir)
        except EncoderError:
            return False
        return True

    async def settled(self) -> None:
        """Wait until all that was begun is loaded, and runs in the modes that it will run in."""
        while self._filling:
            await asyncio.wait(self._filling)

    def close(self) -> None:
        """Begin nothing more in the background."""
        self._loading.close()
        self._choosing.close()

    async def _entry(self, model: NamedModel) -> _Entry:
        entry = self._entries.get(model.name)
        if model.damage is not None and (entry is None or entry.loading.done()):
            self._withdraw(model.name, model.damage)
            entry = None
        if entry is None:
            entry = _Entry(asyncio.get_running_loop().create_future(), self._expected_bytes(model))
            self._entries[model.name] = entry
            entry.loading.add_done_callback(partial(self._forget_failed, model.name))
            filling = asyncio.ensure_future(self._fill(model, entry))
            self._filling.add(filling)
            filling.add_done_callback(self._filling.discard)
        self._entries.move_to_end(model.name)
        return entry

    async def _fill(self, model: NamedModel, entry: _Entry) -> None:
        """Load an entry's encoder, as soon as there is room for it."""
        try:
            await self._make_room(entry)
            forward = await self._loading.run(partial(self._load, model))
        except Exception as error:  # noqa: BLE001 — it is for those who wait
            if not entry.loading.done():
                entry.loading.set_exception(error)
                entry.loading.exception()  # heard, if by nobody else
            self._changed()
            return
        entry.loading.set_result(forward)
        self.loads += 1
        self._changed()
        await self._choosing.run(partial(self._choose, forward))
        entry.is_settled = True
        self._drop_idle(0, keep=entry)
        self._changed()

    async def _make_room(self, wanted: _Entry) -> None:
        """Wait until there is room for an entry. Raises LikenessError `rate_limit_exceeded` if that takes too long."""
        deadline = time.monotonic() + _ROOM_SECONDS
        while True:
            fits = self._drop_idle(wanted.size_bytes)
            if fits or all(name in self._pinned for name, entry in self._entries.items() if entry.is_admitted):
                wanted.is_admitted = True
                return
            if not await self._change(deadline - time.monotonic()):
                raise LikenessError(
                    "rate_limit_exceeded",
                    "There is no room for this model in memory: all of it is taken by models that are in use.",
                    headers={"Retry-After": "5", "retry-after-ms": "5000"},
                )

    def _drop_idle(self, wanted_bytes: int, *, keep: _Entry | None = None) -> bool:
        """Drop what is used least until so many bytes more fit, or nothing if they can't. Returns whether they do."""
        admitted = [(name, entry) for name, entry in self._entries.items() if entry.is_admitted]
        over = sum(entry.size_bytes for _, entry in admitted) + wanted_bytes - self._memory_bytes
        idle = [(name, entry) for name, entry in admitted if entry is not keep and self._may_go(name, entry)]
        # One model is loaded however large it is, where no other is.
        if over > sum(entry.size_bytes for _, entry in idle) and len(idle) < len(admitted):
            return False
        for name, entry in idle:
            if over <= 0:
                break
            del self._entries[name]
            over -= entry.size_bytes
            self.drops += 1
            log.info("encoder_dropped", model=name)
        return True

    def _may_go(self, name: str, entry: _Entry) -> bool:
        return entry.loading.done() and not entry.users and name not in self._pinned

    async def _change(self, seconds: float) -> bool:
        """Wait for anything that may make room, for so long. Whether it came."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        try:
            async with asyncio.timeout(seconds):
                await change
        except TimeoutError:
            return False
        return True

    def _changed(self) -> None:
        """Let those who wait for room look again."""
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    def _withdraw(self, name: str, damage: str) -> None:
        """Forget a damaged model, and refuse it unless it is time to look whether it has been mended."""
        self._entries.pop(name, None)
        now = time.monotonic()
        if now - self._looked.get(name, -_LOOK_AGAIN_SECONDS) < _LOOK_AGAIN_SECONDS:
            raise corrupt_model(name, damage)
        self._looked[name] = now

    def _forget_failed(self, name: str, loading: asyncio.Future[Forward]) -> None:
        """Whatever went wrong while loading, the next request tries again."""
        if _succeeded(loading):
            self._looked.pop(name, None)
        elif (entry := self._entries.get(name)) is not None and entry.loading is loading:
            del self._entries[name]

    def _expected_bytes(self, model: NamedModel) -> int:
        """What a model will take in memory, by its file; 0 where that can't be seen, which loading will tell."""
        try:
            if model.artifact is not None:
                folder = self._folders.folder(model.artifact)
            else:
                folder = registry.locate(model.name, self._base_models_dir)
            return int((folder / WEIGHTS).stat().st_size * (1 + LARGEST_SHARE))
        except (EncoderError, OSError):
            return 0

    def _load(self, model: NamedModel) -> Forward:
        try:
            with failing_disk_is_told():
                folder = self._folder(model)
                encoder = load(folder, model.reads, device=self._device)
                version = _version(model, folder, encoder)
        except (EncoderError, OSError) as error:
            log.error("encoder_not_loaded", model=model.name, reason=str(error))
            message = f"{model.name} can't be loaded: {_PATH.sub(_last_part, str(error))}"
            raise LikenessError("weights_unavailable", message) from error
        log.info("encoder_loaded", model=model.name, device=self._device)
        return Forward(model.name, encoder.eval(), version)

    def _choose(self, forward: Forward) -> None:
        """Find the fastest modes, beside requests that are answered already; on a thread of its own."""
        try:
            known = self._choices.get(forward.architecture)
            choice = forward.choose_modes(self._mode, known=known)
            # What one model was refused another of its architecture may have.
            if known is None and not choice.refused:
                self._choices[forward.architecture] = choice
        except Exception:  # it runs as it was loaded
            log.exception("modes_not_chosen", model=forward.name)

    def _folder(self, model: NamedModel) -> Path:
        """Where the model's files are, verified."""
        if model.artifact is not None:
            return self._folders.verified(model.name, model.artifact, weights_sha256=model.weights_sha256)
        folder = registry.locate(model.name, self._base_models_dir)
        if model.weights_sha256 is not None:
            registry.verify_weights(folder, model.weights_sha256)
        return folder


def _version(model: NamedModel, folder: Path, encoder: AnyEncoder) -> str:
    """What vectors are known by: all that decides them but the text, its prompt and the mode."""
    if model.artifact is not None:
        return model.artifact  # a folder that never changes
    weights = (folder / WEIGHTS).stat()
    parts = [model.name, model.weights_sha256 or f"{weights.st_size} {weights.st_mtime_ns}"]
    if isinstance(encoder, TextEncoder):
        parts += [encoder.tokenizer.fingerprint, encoder.pooling, str(encoder.prompts)]
    return " ".join(parts)


def _last_part(path: re.Match[str]) -> str:
    return path[0].rpartition("/")[2]


def _succeeded(loading: asyncio.Future[Forward]) -> bool:
    return loading.done() and not loading.cancelled() and loading.exception() is None
