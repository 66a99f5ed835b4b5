"""Encoders in memory: loaded once, verified, and dropped when others are used more."""

import asyncio
import errno
import gc
import os
import shutil
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from api_schemas.errors import LikenessError
from encoders.session import Session
from service.inference.pool import EncoderPool
from service.model_names import NamedModel
from storage import manifests
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.manifests import sha256
from storage.model_folders import ModelFolders
from tests.installation import TINY


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def _publish(store: ArtifactStore, name: str, source: Path) -> NamedModel:
    """A tuned model of this name, with the files of `source`."""
    with store.publishing_model(name) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return NamedModel(name, TINY, name, None, 32, 48)


SECONDS = 60


def _run(pool: EncoderPool, use: Callable[[EncoderPool], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(SECONDS):
            await use(pool)
            await pool.settled()

    asyncio.run(run())
    pool.close()


@pytest.fixture
def folders(database: Database, store: ArtifactStore) -> ModelFolders:
    return ModelFolders(database, store)


@pytest.fixture
def pool(folders: ModelFolders, base_models_dir: Path) -> EncoderPool:
    return EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM, mode="onnxruntime-fp32")


#: Two tiny encoders fit, with all that their modes may take, and no third.
ROOM = 27_000_000
BASE = NamedModel(TINY, TINY, None, None, 32, 48)


def test_many_requests_for_a_model_that_is_not_there_load_it_once(pool: EncoderPool) -> None:
    async def use(pool: EncoderPool) -> None:
        encoders = await asyncio.gather(*[pool.get(BASE) for _ in range(50)])
        assert len({id(encoder) for encoder in encoders}) == 1
        assert await pool.get(BASE) is encoders[0]

    _run(pool, use)


def test_the_least_recently_used_is_dropped(pool: EncoderPool, store: ArtifactStore, base_models_dir: Path) -> None:
    a, b, c = (_publish(store, name, base_models_dir / TINY) for name in "abc")

    async def use(pool: EncoderPool) -> None:
        first_a, first_b = await pool.get(a), await pool.get(b)
        await pool.settled()
        assert await pool.get(a) is first_a
        last = await pool.get(c)  # and b goes
        assert pool.last_used() is last
        assert await pool.get(a) is first_a
        assert await pool.get(b) is not first_b

    _run(pool, use)


def test_a_model_in_use_stays_and_another_waits_for_its_room(
    folders: ModelFolders, store: ArtifactStore, base_models_dir: Path
) -> None:
    a, b = (_publish(store, name, base_models_dir / TINY) for name in "ab")

    async def use(pool: EncoderPool) -> None:
        async with pool.using(a) as forward:
            waiting = asyncio.create_task(pool.get(b))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            assert list(pool.loaded()) == [forward]
        assert (await waiting).name == "b"
        assert [each.name for each in pool.loaded()] == ["b"]

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM // 2), use)


def test_a_model_whose_client_left_while_it_was_loaded_makes_room_for_the_next(
    folders: ModelFolders, store: ArtifactStore, base_models_dir: Path
) -> None:
    a, b = (_publish(store, name, base_models_dir / TINY) for name in "ab")

    async def use(pool: EncoderPool) -> None:
        leaving, waiting = (asyncio.create_task(pool.get(model)) for model in (a, b))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await waiting).name == "b"

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM // 2), use)


def test_a_model_for_which_no_room_comes_is_refused_in_time_and_drops_nobody(
    folders: ModelFolders, store: ArtifactStore, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (_publish(store, name, base_models_dir / TINY) for name in "abc")
    monkeypatch.setattr("service.inference.pool._ROOM_SECONDS", 0.05)

    async def use(pool: EncoderPool) -> None:
        async with pool.using(a):
            await pool.get(b)
            await pool.settled()
            monkeypatch.setattr(pool, "_memory_bytes", 1)
            with pytest.raises(LikenessError) as refusal:
                await pool.get(c)
            assert (refusal.value.code, refusal.value.status) == ("rate_limit_exceeded", 429)
            assert {each.name for each in pool.loaded()} == {"a", "b"}

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM), use)


def test_models_that_were_dropped_are_gone_from_memory(
    folders: ModelFolders, store: ArtifactStore, base_models_dir: Path
) -> None:
    a, b = (_publish(store, name, base_models_dir / TINY) for name in "ab")

    async def use(pool: EncoderPool) -> None:
        gone = weakref.ref(await pool.get(a))
        await pool.settled()
        await pool.get(b)
        await pool.settled()
        gc.collect()
        assert gone() is None

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=1), use)


def test_a_pinned_model_is_never_dropped(folders: ModelFolders, store: ArtifactStore, base_models_dir: Path) -> None:
    a, b, c = (_publish(store, name, base_models_dir / TINY) for name in "abc")

    async def use(pool: EncoderPool) -> None:
        for model in (a, b, c):
            await pool.get(model)
        assert [each.name for each in pool.loaded()] == ["a", "c"]

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM, pinned=["a"]), use)


def test_a_model_larger_than_the_budget_is_served_alone(
    folders: ModelFolders, store: ArtifactStore, base_models_dir: Path
) -> None:
    a, b = (_publish(store, name, base_models_dir / TINY) for name in "ab")

    async def use(pool: EncoderPool) -> None:
        for model in (a, b, a):
            assert (await pool.get(model)).name == model.name
            await pool.settled()
            assert [each.name for each in pool.loaded()] == [model.name]

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=1), use)


def test_modes_are_chosen_while_the_model_answers_already(pool: EncoderPool) -> None:
    async def use(pool: EncoderPool) -> None:
        forward = await pool.get(BASE)
        tokens = [text.ids for text in forward.encoder.tokenize(["as it is", "and as it will be, soon"])]
        before = forward(tokens)
        await pool.settled()
        assert forward.choice.refused == ()
        assert np.abs(forward(tokens) - before).max() < 1e-6

    _run(pool, use)


def test_a_mode_that_was_asked_for_is_taken(folders: ModelFolders, base_models_dir: Path) -> None:
    async def use(pool: EncoderPool) -> None:
        forward = await pool.get(BASE)
        await pool.settled()
        assert (forward.choice.single, forward.choice.several) == ("onnxruntime-fp32", "onnxruntime-fp32")

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM, mode="onnxruntime-fp32"), use)


def test_a_mode_whose_vectors_differ_is_refused_and_said(
    folders: ModelFolders, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "embed", lambda self, tokens: np.full((len(tokens), 32), 32**-0.5, dtype=np.float32))

    async def use(pool: EncoderPool) -> None:
        forward = await pool.get(BASE)
        await pool.settled()
        assert (forward.choice.single, forward.choice.several) == ("torch-fp32", "torch-fp32")
        ((mode, why),) = forward.choice.refused
        assert mode == "onnxruntime-fp32"
        assert "cosine" in why

    _run(EncoderPool(folders, base_models_dir=base_models_dir, memory_bytes=ROOM, mode="onnxruntime-fp32"), use)


def test_a_client_that_leaves_does_not_stop_the_loading_that_others_wait_for(pool: EncoderPool) -> None:
    async def use(pool: EncoderPool) -> None:
        leaving, staying = (asyncio.create_task(pool.get(BASE)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).encoder.dimension == 32

    _run(pool, use)


def test_a_model_that_differs_from_its_manifest_is_refused_until_it_is_mended(
    pool: EncoderPool, store: ArtifactStore, base_models_dir: Path
) -> None:
    model = _publish(store, "altered", base_models_dir / TINY)
    config = store.model("altered") / "config.json"
    sound = config.read_bytes()

    async def use(pool: EncoderPool) -> None:
        config.write_bytes(sound.replace(b"gelu", b"relu"))
        with pytest.raises(LikenessError) as refusal:
            await pool.get(model)
        assert refusal.value.code == "artifact_corrupt"
        assert "config.json" in refusal.value.message
        config.write_bytes(sound)
        assert (await pool.get(model)).encoder.dimension == 32

    _run(pool, use)


def test_a_model_that_is_withdrawn_is_refused_also_from_memory_and_looked_at_again_after_a_while(
    pool: EncoderPool, store: ArtifactStore, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _publish(store, "altered", base_models_dir / TINY)
    withdrawn = replace(model, damage="config.json differs from its checksum")
    config = store.model("altered") / "config.json"
    sound = config.read_bytes()

    async def refused(pool: EncoderPool) -> None:
        with pytest.raises(LikenessError) as refusal:
            await pool.get(withdrawn)
        assert (refusal.value.code, refusal.value.headers["Retry-After"]) == ("artifact_corrupt", "60")
        assert pool.last_used() is None

    async def use(pool: EncoderPool) -> None:
        await pool.get(model)
        config.write_bytes(sound + b" ")
        await refused(pool)
        config.write_bytes(sound)
        await refused(pool)
        monkeypatch.setattr("service.inference.pool._LOOK_AGAIN_SECONDS", 0.0)
        assert await pool.get(withdrawn) is await pool.get(model)

    _run(pool, use)


def test_many_requests_for_a_model_that_is_withdrawn_look_at_it_once(
    pool: EncoderPool, store: ArtifactStore, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _publish(store, "altered", base_models_dir / TINY)
    withdrawn = replace(model, damage="config.json differs from its checksum")
    (store.model("altered") / "config.json").unlink()
    looks: list[str] = []
    damage_of = store.damage_of

    def look(artifact: str, **options: str | None) -> str | None:
        looks.append(artifact)
        return damage_of(artifact, **options)

    monkeypatch.setattr(store, "damage_of", look)

    async def use(pool: EncoderPool) -> None:
        for _ in range(3):
            answers = await asyncio.gather(*[pool.get(withdrawn) for _ in range(20)], return_exceptions=True)
            assert {type(answer) for answer in answers} == {LikenessError}

    _run(pool, use)
    assert looks == ["altered"]


def test_a_model_in_anothers_place_is_refused(pool: EncoderPool, store: ArtifactStore, base_models_dir: Path) -> None:
    model = _publish(store, "other", base_models_dir / TINY)

    async def use(pool: EncoderPool) -> None:
        with pytest.raises(LikenessError) as refusal:
            await pool.get(replace(model, weights_sha256="0" * 64))
        assert refusal.value.code == "artifact_corrupt"

    _run(pool, use)


def test_a_disk_that_does_not_give_a_model_is_not_taken_for_damage(
    pool: EncoderPool, store: ArtifactStore, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _publish(store, "far", base_models_dir / TINY)

    def read(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    async def use(pool: EncoderPool) -> None:
        monkeypatch.setattr(manifests, "sha256", read)
        with pytest.raises(LikenessError) as refusal:
            await pool.get(model)
        monkeypatch.undo()
        assert (refusal.value.code, refusal.value.headers["Retry-After"]) == ("storage_failed", "60")
        assert str(store.root) not in refusal.value.message
        assert (await pool.get(model)).encoder.dimension == 32

    _run(pool, use)


def test_a_folder_that_no_encoder_can_be_made_of_is_refused(
    pool: EncoderPool, store: ArtifactStore, base_models_dir: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(base_models_dir / TINY, source)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    model = _publish(store, "pickled", source)

    async def use(pool: EncoderPool) -> None:
        with pytest.raises(LikenessError) as refusal:
            await pool.get(model)
        assert refusal.value.code == "weights_unavailable"
        assert "pytorch_model.bin" in refusal.value.message
        assert str(tmp_path) not in refusal.value.message

    _run(pool, use)


def test_base_weights_that_are_not_those_promised_are_refused(pool: EncoderPool) -> None:
    async def use(pool: EncoderPool) -> None:
        with pytest.raises(LikenessError) as refusal:
            await pool.get(NamedModel(TINY, TINY, None, "0" * 64, 32, 48))
        assert refusal.value.code == "weights_unavailable"

    _run(pool, use)


def test_whatever_went_wrong_while_loading_is_tried_again(
    folders: ModelFolders, base_models_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base" / TINY
    shutil.copytree(base_models_dir / TINY, folder)
    weights = folder / "model.safetensors"
    away = weights.rename(tmp_path / "elsewhere")

    async def use(pool: EncoderPool) -> None:
        with pytest.raises(LikenessError) as refusal:
            await pool.get(replace(BASE, weights_sha256=sha256(away)))
        assert refusal.value.code == "weights_unavailable"
        assert "model.safetensors" in refusal.value.message
        assert str(tmp_path) not in refusal.value.message
        assert pool.last_used() is None
        away.rename(weights)
        assert await pool.get(BASE) is pool.last_used()

    _run(EncoderPool(folders, base_models_dir=tmp_path / "base", memory_bytes=ROOM), use)
