"""Encoders in memory: loaded on first use, verified, and dropped when others are used more."""

import asyncio
import re
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path

import structlog
import torch

from api_schemas.errors import LikenessError
from encoders import registry
from encoders.errors import EncoderError
from encoders.loading import AnyEncoder, load
from service.model_names import NamedModel
from storage.artifacts import corrupt_model, failing_disk_is_told
from storage.model_folders import ModelFolders

log = structlog.get_logger(__name__)

# Where things lie on this machine is for the log, and not for whoever asks.
_PATH = re.compile(r"(?<![\w./])(/[^\s/'\",;]+)+")
#: How often a damaged model is looked at again, which reads all of it.
_LOOK_AGAIN_SECONDS = 10.0


class EncoderPool:
    """At most `size` encoders by model name. Belongs to one event loop."""

    def __init__(self, folders: ModelFolders, *, base_models_dir: Path | None, size: int) -> None:
        self._folders = folders
        self._base_models_dir = base_models_dir
        self._size = size
        # Ordered by use. A future stands for its encoder from the moment loading begins, so that many requests
        # for a model that isn't there load it once.
        self._encoders: OrderedDict[str, asyncio.Future[AnyEncoder]] = OrderedDict()
        self._looked: dict[str, float] = {}  # when damaged models were looked at here, by the monotonic clock
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    async def get(self, model: NamedModel) -> AnyEncoder:
        """The encoder of a model. Raises LikenessError `weights_unavailable`, `artifact_corrupt` or `storage_failed`.

        A model that is withdrawn is refused also where it is in memory, until it is found to be mended.
        """
        future = self._encoders.get(model.name)
        if model.damage is not None and (future is None or future.done()):
            self._withdraw(model.name, model.damage)
            future = None
        if future is None:
            future = asyncio.ensure_future(asyncio.to_thread(self._load, model))
            future.add_done_callback(partial(self._forget_failed, model.name))
            self._encoders[model.name] = future
            self._make_room()
        self._encoders.move_to_end(model.name)
        # Shielded: a client that leaves must not stop the loading that others wait for.
        return await asyncio.shield(future)

    def last_used(self) -> AnyEncoder | None:
        """The encoder that was asked for last among those in memory."""
        loaded = (future for future in reversed(self._encoders.values()) if _succeeded(future))
        return next((future.result() for future in loaded), None)

    def has_weights(self, model: NamedModel) -> bool:
        """Whether a base model's folder is on this machine."""
        try:
            registry.locate(model.name, self._base_models_dir)
        except EncoderError:
            return False
        return True

    def _withdraw(self, name: str, damage: str) -> None:
        """Forget a damaged model, and refuse it unless it is time to look whether it has been mended."""
        self._encoders.pop(name, None)
        now = time.monotonic()
        if now - self._looked.get(name, -_LOOK_AGAIN_SECONDS) < _LOOK_AGAIN_SECONDS:
            raise corrupt_model(name, damage)
        self._looked[name] = now

    def _forget_failed(self, name: str, future: "asyncio.Future[AnyEncoder]") -> None:
        """Whatever went wrong while loading, the next request tries again."""
        if _succeeded(future):
            self._looked.pop(name, None)
        elif self._encoders.get(name) is future:
            del self._encoders[name]

    def _make_room(self) -> None:
        while len(self._encoders) > self._size:
            name, _ = self._encoders.popitem(last=False)
            # Requests that hold the encoder keep it alive until they are answered.
            log.info("encoder_dropped", model=name)

    def _load(self, model: NamedModel) -> AnyEncoder:
        try:
            with failing_disk_is_told():
                encoder = load(self._folder(model), model.reads, device=self._device)
        except (EncoderError, OSError) as error:
            log.error("encoder_not_loaded", model=model.name, reason=str(error))
            message = f"{model.name} can't be loaded: {_PATH.sub(_last_part, str(error))}"
            raise LikenessError("weights_unavailable", message) from error
        log.info("encoder_loaded", model=model.name, device=self._device)
        return encoder.eval()

    def _folder(self, model: NamedModel) -> Path:
        """Where the model's files are, verified."""
        if model.artifact is not None:
            return self._folders.verified(model.name, model.artifact, weights_sha256=model.weights_sha256)
        folder = registry.locate(model.name, self._base_models_dir)
        if model.weights_sha256 is not None:
            registry.verify_weights(folder, model.weights_sha256)
        return folder


def _last_part(path: re.Match[str]) -> str:
    return path[0].rpartition("/")[2]


def _succeeded(future: "asyncio.Future[AnyEncoder]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
