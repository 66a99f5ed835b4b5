"""What of an encoder is trained, from the request to vectors."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from sqlalchemy import select

from encoders.tokenizer import TextTokenizer
from storage.artifacts import ArtifactStore
from storage.tables import Model
from tests.encoders.random_models import write_model
from tests.installation import HELD_OUT, PAIRS, TINY, Installation

PADDED = "tiny/distilbert"
PROMPTS = {"query": "search for: ", "document": "a page: "}
TEXTS = ["the word a", "b said again", "something else, and a good deal longer than the others"]


@pytest.fixture(scope="module", autouse=True)
def padded_model(base_models_dir: Path) -> Iterator[None]:
    write_model(base_models_dir / PADDED, "distilbert")
    yield
    shutil.rmtree(base_models_dir / PADDED)


def created(
    shared: Installation, options: dict[str, Any], *, model: str = TINY, rows: Any = PAIRS, **contrastive: Any
) -> Any:
    method = {
        "model": options,
        "loss": {"temperature": 0.1},
        "hyperparameters": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2},
        **contrastive,
    }
    job = shared.openai.fine_tuning.jobs.create(
        model=model,
        training_file=shared.upload(rows),
        validation_file=shared.upload(HELD_OUT) if rows is PAIRS else None,
        method={"type": "contrastive", "contrastive": method},
    )
    return shared.prepare(job)


def folder_of(shared: Installation, job: Any) -> Path:
    with shared.database.session_across_teams() as session:
        model = session.scalars(select(Model).where(Model.job_id == job.id)).one()
    return ArtifactStore(shared.settings.artifacts_dir).model(model.artifact)


def vectors(shared: Installation, model: str, **extra: Any) -> np.ndarray:
    answer = shared.openai.embeddings.create(model=model, input=TEXTS, extra_body=extra)
    return np.array([item.embedding for item in answer.data])


def scores(shared: Installation, model: str, **compared: Any) -> list[float]:
    """In the order of the request."""
    answer = shared.request("POST", "/v1/similarity", json={"model": model, **compared}).json()
    return [each["score"] for each in sorted(answer["data"], key=lambda each: each["index"])]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(TINY, {"train": "lora", "lora": {"rank": 4}, "prompts": PROMPTS}, id="LoRA with prompts"),
        pytest.param(TINY, {"train": "projection", "projection_dim": 16, "matryoshka_dims": [4, 8]}, id="projection"),
        pytest.param(PADDED, {"freeze_layers": 1, "pooling": "cls"}, id="padded"),
    ],
)
def test_what_was_trained_is_served_as_sentence_transformers_opens_it(
    shared: Installation, model: str, options: dict[str, Any]
) -> None:
    job = shared.train(created(shared, options, model=model))
    assert job.status == "succeeded", job.error
    peer = SentenceTransformer(str(folder_of(shared, job)), device="cpu")
    tuned = job.fine_tuned_model
    for found, expected in (
        (vectors(shared, tuned), peer.encode(TEXTS)),
        (vectors(shared, tuned, input_type="query"), peer.encode_query(TEXTS)),
        (vectors(shared, tuned, input_type="document"), peer.encode_document(TEXTS)),
    ):
        assert found.shape == expected.shape
        assert (found * expected).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert scores(shared, tuned, query=TEXTS[0], documents=TEXTS[1:]) == pytest.approx(
        (peer.encode_query(TEXTS[0]) * peer.encode_document(TEXTS[1:])).sum(axis=1), abs=1e-5
    )
    assert scores(shared, tuned, pairs=[TEXTS[:2]], input_type="query") == pytest.approx(
        [peer.encode_query(TEXTS[0]) @ peer.encode_query(TEXTS[1])], abs=1e-5
    )
    assert job.method.contrastive["model"]["train"] == options.get("train", "full")
    assert job.method.contrastive["data"]["bucket_by_length"] is (model == PADDED)


def test_a_lora_is_published_beside_the_weights_that_it_is_merged_in(shared: Installation) -> None:
    job = shared.train(created(shared, {"train": "lora", "prompts": PROMPTS}))
    folder = folder_of(shared, job)
    assert (folder / "adapter/adapter_model.safetensors").exists()
    assert "encode_query" in (folder / "README.md").read_text()
    further = shared.train(created(shared, {}, model=job.fine_tuned_model))
    assert further.status == "succeeded", further.error
    assert SentenceTransformer(str(folder_of(shared, further)), device="cpu").prompts == PROMPTS, "they are kept"


# Torch's exporter warns of its own parts.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_graph_that_is_asked_for_is_in_the_download_and_gives_what_is_served(
    shared: Installation, tmp_path: Path
) -> None:
    job = shared.train(created(shared, {}, export=["onnx"]))
    assert job.status == "succeeded", job.error
    answer = shared.request("GET", f"/v1/models/{job.fine_tuned_model.replace('/', '%2F')}/download")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    [graph] = tmp_path.rglob("onnx/model.onnx")
    read = TextTokenizer.of_folder(graph.parent.parent)
    tokens = [text.ids.astype(np.int64) for text in read(TEXTS)]
    session = onnxruntime.InferenceSession(str(graph))
    for ids, served in zip(tokens, vectors(shared, job.fine_tuned_model), strict=True):
        (vector,) = session.run(
            ["sentence_embedding"], {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
        )
        assert np.abs(vector[0] - served).max() < 1e-4


def test_a_prompt_that_a_model_lacks_is_refused_with_those_that_it_has(shared: Installation) -> None:
    answer = shared.request("POST", "/v1/embeddings", json={"model": TINY, "input": "a", "input_type": "code"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "input_type")
    assert "document, query" in error["message"]
    np.testing.assert_array_equal(vectors(shared, TINY, input_type="query"), vectors(shared, TINY))


@pytest.mark.parametrize(
    ("options", "rows", "words"),
    [
        ({"matryoshka_dims": [64]}, PAIRS, "a vector has 32 numbers"),
        ({"freeze_layers": 3}, PAIRS, "the model has 2 layers"),
        ({"freeze_layers": 2}, PAIRS, "nothing is left to be trained"),
        ({"freeze_layers": 2, "train": "lora", "projection_dim": 8}, PAIRS, "nothing is left to be trained"),
        ({"train": "projection"}, [{"text": row["anchor"]} for row in PAIRS], "no dropout"),
    ],
)
def test_what_cannot_be_trained_fails_before_it_is_queued(
    shared: Installation, options: dict[str, Any], rows: Any, words: str
) -> None:
    job = created(shared, options, rows=rows)
    assert (job.status, job.error.code) == ("failed", "invalid_value")
    assert words in job.error.message
