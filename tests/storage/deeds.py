"""What is written into the artifact store, to be done while its disk fails or its power is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.search_trials import SearchTrials

CONTENT = b"one\n" * 1000


async def stream() -> AsyncIterator[bytes]:
    yield CONTENT[:100]
    yield CONTENT[100:]


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "1_Pooling" / "more").mkdir(parents=True)
    (folder / "1_Pooling" / "more" / "config.json").write_text("{}")


def upload(store: ArtifactStore) -> None:
    asyncio.run(store.write_file("file-1", stream()))


def send_part(store: ArtifactStore) -> None:
    async def run() -> None:
        async with store.receiving_part("upload-1", stream()) as part:
            store.keep_part("upload-1", part)

    asyncio.run(run())


def publish(store: ArtifactStore) -> None:
    with store.publishing_model("ftjob-1-1") as folder:
        fill(folder)


def keep_checkpoint(store: ArtifactStore) -> None:
    with JobCheckpoints(store, "ftjob-1").publishing(4) as folder:
        fill(folder)


def keep_trial(store: ArtifactStore) -> None:
    with SearchTrials(store, "ftjob-1").publishing("trial", 1) as folder:
        fill(folder)
