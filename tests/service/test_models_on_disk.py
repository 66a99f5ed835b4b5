"""Tuned models whose files are damaged, deleted or in use, as clients of several processes see them."""

from __future__ import annotations

import base64
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from storage import garbage, manifests
from storage.artifacts import ArtifactStore
from storage.garbage import Retention
from tests.installation import PAIRS, Installation, running_installation
from tests.processes import until


@pytest.fixture
def other(shared: Installation) -> Iterator[Installation]:
    """A second API process, as far as a client can tell."""
    with running_installation(shared.settings) as running:
        yield running


def published(shared: Installation, pairs_file: str) -> tuple[str, Path]:
    job = shared.create_job(pairs_file)
    return shared.publish(job), shared.settings.artifacts_dir / "models" / f"{job.id}-1"


def embed(installation: Installation, model: str) -> Any:
    return installation.request("POST", "/v1/embeddings", json={"model": model, "input": "a"})


def model_of(installation: Installation, model: str) -> Any:
    return installation.request("GET", f"/v1/models/{model}").json()


def test_a_damaged_model_is_withdrawn_everywhere_until_it_is_mended(
    shared: Installation, other: Installation, pairs_file: str
) -> None:
    model, folder = published(shared, pairs_file)
    sound, _ = published(shared, pairs_file)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    assert embed(other, model).status_code == 200
    assert model_of(shared, model)["damage"] is None
    weights.write_bytes(content[:-1])

    refusal = embed(shared, model)

    assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "artifact_corrupt")
    assert refusal.headers["x-should-retry"] == "false"
    assert refusal.headers["retry-after"]
    until(lambda: embed(other, model).status_code == 503)
    assert embed(other, model).json()["error"]["code"] == "artifact_corrupt"
    for each in (shared, other):
        assert model_of(each, model)["damage"] == "model.safetensors differs from its checksum"
        assert embed(each, sound).status_code == 200
        assert model_of(each, sound)["damage"] is None

    weights.write_bytes(content)
    further = shared.prepare(shared.create_job(pairs_file, model=model, prepared=False))  # which reads all of it

    assert further.status == "queued"
    assert model_of(shared, model)["damage"] is None
    for each in (shared, other):
        until(lambda each=each: embed(each, model).status_code == 200)


@pytest.mark.parametrize("what", ["card", "download"])
def test_what_is_damaged_is_not_sent(shared: Installation, pairs_file: str, what: str) -> None:
    model, folder = published(shared, pairs_file)
    (folder / "manifest.json").write_text("{}")

    answer = shared.request("GET", f"/v1/models/{model}/{what}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "artifact_corrupt")


@pytest.mark.parametrize("what", ["card", "download"])
def test_what_the_disk_does_not_give_is_not_called_damaged(
    shared: Installation, pairs_file: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model, folder = published(shared, pairs_file)

    def read(folder: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    monkeypatch.setattr(manifests, "recorded", read)
    answer = shared.request("GET", f"/v1/models/{model}/{what}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_failed")
    assert answer.headers["retry-after"]
    assert folder.name not in answer.text
    assert model_of(shared, model)["damage"] is None


def test_a_download_that_finds_damage_withdraws_the_model(shared: Installation, pairs_file: str) -> None:
    model, folder = published(shared, pairs_file)
    (folder / "config.json").unlink()

    assert shared.request("GET", f"/v1/models/{model}/download").status_code == 503

    assert model_of(shared, model)["damage"] == "config.json is missing"


def test_a_model_that_a_job_trains_further_is_not_deleted(shared: Installation, pairs_file: str) -> None:
    model, _ = published(shared, pairs_file)
    job = shared.create_job(pairs_file, model=model)

    with pytest.raises(openai.ConflictError) as refusal:
        shared.openai.models.delete(model)

    assert refusal.value.code == "model_in_use"
    assert job.id in refusal.value.message
    assert embed(shared, model).status_code == 200
    shared.openai.fine_tuning.jobs.cancel(job.id)
    assert shared.openai.models.delete(model).deleted


def test_a_deleted_model_is_served_by_nobody_and_its_files_go_later(
    shared: Installation, other: Installation, pairs_file: str
) -> None:
    model, folder = published(shared, pairs_file)
    assert embed(other, model).status_code == 200
    store = ArtifactStore(shared.settings.artifacts_dir)

    assert shared.openai.models.delete(model).deleted

    for each in (shared, other):
        until(lambda each=each: embed(each, model).status_code == 404)
    garbage.sweep(shared.database, store, Retention(deleted_model_seconds=600))
    assert store.damage_of(folder.name) is None
    garbage.sweep(shared.database, store, Retention(deleted_model_seconds=0))
    assert not folder.exists()


def test_a_download_goes_on_while_its_model_is_deleted(shared: Installation, pairs_file: str) -> None:
    model, _ = published(shared, pairs_file)
    whole = shared.request("GET", f"/v1/models/{model}/download").content
    answers: list[bytes] = []

    def download() -> None:
        answers.append(shared.request("GET", f"/v1/models/{model}/download").content)

    threads = [threading.Thread(target=download) for _ in range(3)]
    for thread in threads:
        thread.start()
    shared.openai.models.delete(model)
    garbage.sweep(shared.database, ArtifactStore(shared.settings.artifacts_dir), Retention())
    for thread in threads:
        thread.join()

    assert all(answer == whole or b"model_not_found" in answer for answer in answers)


def test_a_file_is_sent_with_the_digest_of_what_was_uploaded(shared: Installation) -> None:
    file_id = shared.upload(PAIRS)
    sent = shared.openai.files.retrieve(file_id).to_dict()["sha256"]

    answer = shared.request("GET", f"/v1/files/{file_id}/content")

    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(sent)).decode()}:"
