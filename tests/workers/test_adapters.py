"""Jobs on ready vectors: from a file of vectors to an adapter that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from sqlalchemy import select

from api_schemas import inputs
from encoders import registry
from encoders.vectors import VectorAdapter
from storage.artifacts import ArtifactStore
from storage.tables import Model
from tests.installation import HELD_OUT, PAIRS, TINY, Installation
from tests.markdown import ROOT, code_blocks
from tests.workers.following import messages_of

D, SIGNAL = 24, 10
NOISE = 1.3


def pairs_of(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Partners agree in SIGNAL directions, and have noise of their own in all others; (n, D) each."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    common = rng.normal(size=(n, SIGNAL))

    def noisy() -> np.ndarray:
        return np.hstack([common, NOISE * rng.normal(size=(n, D - SIGNAL))]) @ turned

    return noisy(), noisy()


def pair_rows(seed: int, n: int) -> list[dict[str, Any]]:
    anchors, positives = pairs_of(seed, n)
    return [
        {"anchor_vector": anchor, "positive_vector": positive}
        for anchor, positive in zip(anchors.tolist(), positives.tolist(), strict=True)
    ]


def labelled_rows(seed: int, n: int) -> list[dict[str, Any]]:
    """2n vectors, of each pair's two under one label."""
    anchors, positives = pairs_of(seed, n)
    rows = [*anchors.tolist(), *positives.tolist()]
    return [{"vector": vector, "label": number % n} for number, vector in enumerate(rows)]


def create(installation: Installation, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    """A job, prepared as a worker does; `contrastive` holds what the method has beside hyperparameters."""
    hyperparameters = {"max_steps": 3, "batch_size": 32, **arguments.pop("hyperparameters", {})}
    contrastive = {"hyperparameters": hyperparameters, **arguments.pop("contrastive", {})}
    job = installation.openai.fine_tuning.jobs.create(
        model=arguments.pop("model", "adapter"),
        training_file=installation.upload(rows),
        method={"type": "contrastive", "contrastive": contrastive},
        **arguments,
    )
    return installation.prepare(job)


def embed(installation: Installation, model: str, vectors: Any, **arguments: Any) -> np.ndarray:
    answer = installation.openai.embeddings.create(model=model, input=np.asarray(vectors).tolist(), **arguments)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (0, 0)
    return np.array([entry.embedding for entry in answer.data])


def found(anchors: np.ndarray, positives: np.ndarray) -> float:
    """The share of anchors whose nearest positive is their own."""
    return float(((anchors @ positives.T).argmax(axis=1) == np.arange(len(anchors))).mean())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def trained(shared: Installation) -> Any:
    """A short job on pairs of vectors, with a validation file."""
    job = shared.train(create(shared, pair_rows(1, 80), validation_file=shared.upload(pair_rows(2, 40)), seed=3))
    assert job.status == "succeeded", job.error
    return job


@pytest.mark.parametrize(
    ("form", "rows"), [("linear", labelled_rows(1, 300)), ("mlp", pair_rows(1, 300))], ids=["linear", "mlp"]
)
def test_a_job_on_vectors_finds_held_out_partners_that_the_raw_cosine_does_not(
    shared: Installation, rows: list[dict[str, Any]], form: str
) -> None:
    held_out = shared.upload(pair_rows(2, 60))
    options = {"contrastive": {"model": {"adapter": form}}, "hyperparameters": {"n_epochs": 40, "max_steps": 300}}
    job = shared.train(create(shared, rows, validation_file=held_out, **options))

    assert job.status == "succeeded", job.error
    assert job.method.contrastive["model"]["adapter"] == form
    assert job.method.contrastive["hyperparameters"]["max_seq_length"] is None
    anchors, positives = pairs_of(3, 200)
    before = found(unit(anchors), unit(positives))
    tuned = job.fine_tuned_model
    after = found(embed(shared, tuned, anchors), embed(shared, tuned, positives))
    assert before < 0.4
    assert after > before + 0.2


def test_the_model_says_what_it_is(shared: Installation, trained: Any) -> None:
    model = shared.openai.models.retrieve(trained.fine_tuned_model)

    assert model.id.startswith("ft:adapter:")
    assert (model.base_model, model.reads, model.dimension, model.max_seq_length) == ("adapter", "vectors", D, None)
    assert trained.trained_tokens == 0


def test_the_adapter_is_listed_before_anything_is_known_of_it(shared: Installation) -> None:
    listed = {model.id: model for model in shared.openai.models.list()}
    base = listed["adapter"]
    assert (base.kind, base.reads, base.dimension, base.max_seq_length) == ("base", "vectors", None, None)
    assert listed[TINY].reads == "texts"


def test_its_name_is_one_in_the_contract_and_among_the_encoders() -> None:
    assert inputs.ADAPTER == registry.ADAPTER


def test_events_and_metrics_speak_of_vectors(shared: Installation, trained: Any) -> None:
    messages = messages_of(shared, trained.id)
    read = [message for message in messages if message.startswith("Read ")]
    assert read == ["Read 80 rows with 160 different vectors", "Read 40 rows with 80 different vectors"]
    assert any(message.startswith("Validation loss: ") for message in messages)
    steps = shared.request("GET", f"/v1/fine_tuning/jobs/{trained.id}/metrics").json()["data"]
    assert [step["tokens_per_second"] for step in steps] == [0, 0, 0]


def test_vectors_are_evaluated_and_the_card_says_how_to_use_them(shared: Installation, trained: Any) -> None:
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{trained.id}/evaluation").json()
    assert (found["split"]["rows"], found["split"]["queries"], found["split"]["documents"]) == (40, 40, 120)
    examples = found["gained"] + found["lost"]
    assert examples
    assert {each["query"] for each in examples} <= {f"row {number}" for number in range(1, 41)}
    card = shared.request("GET", f"/v1/models/{trained.fine_tuned_model}/card").text
    assert found["summary"] in card
    assert "numpy" in card
    assert "entence" not in card


def test_labelled_vectors_are_held_out_by_label(shared: Installation) -> None:
    rows = [{"vector": [number % 5, number, 1.0], "label": "abcde"[number % 5]} for number in range(120)]
    job = shared.train(create(shared, rows, contrastive={"evaluation": {"every_steps": 2, "keep": "best"}}))
    assert job.status == "succeeded", job.error
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation").json()
    assert (found["metric"], found["split"]["source"]) == ("map@r", "training_file")
    assert [each["step"] for each in found["history"]] == [0, 2, 3]


def test_what_is_published_is_what_is_served(shared: Installation, trained: Any) -> None:
    with shared.database.session_across_teams() as session:
        row = session.scalars(select(Model).where(Model.job_id == trained.id)).one()
    folder: Path = ArtifactStore(shared.settings.artifacts_dir).verify_model(row.artifact)
    vectors, _ = pairs_of(4, 5)

    made = VectorAdapter.load(folder).embed(vectors)
    np.testing.assert_allclose(embed(shared, row.id, vectors), made, atol=1e-6)


def test_the_same_seed_gives_the_same_weights(shared: Installation, trained: Any) -> None:
    again = shared.train(create(shared, pair_rows(1, 80), seed=3))
    sums = {shared.openai.models.retrieve(job.fine_tuned_model).weights_sha256 for job in (trained, again)}
    assert len(sums) == 1


def test_a_tuned_adapter_can_be_tuned_further(shared: Installation, trained: Any) -> None:
    job = shared.train(create(shared, pair_rows(5, 40), model=trained.fine_tuned_model))
    assert job.status == "succeeded", job.error
    further = shared.openai.models.retrieve(job.fine_tuned_model)
    assert (further.base_model, further.dimension) == ("adapter", D)
    assert job.method.contrastive["model"]["adapter"] == "linear"


@pytest.mark.parametrize(
    ("view", "rows"), [("noise", pair_rows(1, 40)), ("masking", labelled_rows(1, 20))], ids=["noise", "masking"]
)
def test_a_view_of_vectors_trains(shared: Installation, rows: list[dict[str, Any]], view: str) -> None:
    job = shared.train(create(shared, rows, contrastive={"data": {"view": view}}))
    assert job.status == "succeeded", job.error


# --- what doesn't go together, refused before it is queued ---


@pytest.mark.parametrize(
    ("rows", "arguments", "param", "words"),
    [
        pytest.param(pair_rows(1, 4), {"model": TINY}, "training_file", "`model`: 'adapter'", id="vectors for texts"),
        pytest.param(PAIRS, {}, "training_file", "Name a text encoder", id="texts for vectors"),
        pytest.param(
            PAIRS, {"contrastive": {"data": {"format": "pairs"}}}, "method.contrastive.data.format",
            "Name a text encoder", id="texts, as told",
        ),
        pytest.param(
            PAIRS, {"model": TINY, "contrastive": {"model": {"adapter": "mlp"}}}, "method.contrastive.model.adapter",
            "Leave it out", id="an adapter of a text encoder",
        ),
        pytest.param(
            PAIRS, {"model": TINY, "contrastive": {"data": {"view": "noise"}}}, "method.contrastive.data.view",
            "Choose dropout", id="noise on texts",
        ),
        pytest.param(
            pair_rows(1, 4), {"contrastive": {"data": {"view": "span"}}}, "method.contrastive.data.view",
            "Choose noise", id="spans of vectors",
        ),
        pytest.param(
            pair_rows(1, 4), {"hyperparameters": {"max_seq_length": 64}},
            "method.contrastive.hyperparameters.max_seq_length", "counts tokens", id="a length",
        ),
        pytest.param(
            pair_rows(1, 4), {"contrastive": {"model": {"adapter": "mlp", "train": "lora"}}},
            "method.contrastive.model.train", "models that read texts", id="a LoRA on vectors",
        ),
        pytest.param(
            pair_rows(1, 4), {"contrastive": {"export": ["onnx"]}}, "method.contrastive.export",
            "models that read texts", id="a graph of an adapter",
        ),
    ],
)  # fmt: skip
def test_what_the_model_does_not_read_is_refused_at_once(
    shared: Installation, rows: list[dict[str, Any]], arguments: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        create(shared, rows, **arguments)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


def test_a_wrong_validation_file_is_refused_too(shared: Installation) -> None:
    with pytest.raises(openai.BadRequestError, match="Name a text encoder") as caught:
        create(shared, pair_rows(1, 20), validation_file=shared.upload(HELD_OUT))
    assert caught.value.param == "validation_file"


@pytest.mark.parametrize(("model", "rows"), [(TINY, pair_rows(1, 20)), ("adapter", PAIRS)], ids=["texts", "vectors"])
def test_a_file_that_turns_out_wrong_when_it_is_validated_fails_the_job(
    shared: Installation, model: str, rows: list[dict[str, Any]]
) -> None:
    file_id = shared.upload(rows, validated=False)
    job = shared.openai.fine_tuning.jobs.create(model=model, training_file=file_id)
    shared.validate(file_id)
    job = shared.openai.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.attempt, job.error.code) == ("failed", 0, "invalid_value")
    assert f"and {model} reads" in job.error.message


@pytest.mark.parametrize(
    ("model", "rows", "columns"),
    [
        ("adapter", [{"a": row["anchor"], "b": row["positive"]} for row in PAIRS], {"anchor": "a", "positive": "b"}),
        (TINY, [{"a": row["anchor_vector"], "b": row["positive_vector"]} for row in pair_rows(1, 20)],
         {"anchor_vector": "a", "positive_vector": "b"}),
    ],
    ids=["texts for vectors", "vectors for texts"],
)  # fmt: skip
def test_a_file_that_only_columns_explain_fails_in_preparation(
    shared: Installation, model: str, rows: list[dict[str, Any]], columns: dict[str, str]
) -> None:
    job = create(shared, rows, model=model, contrastive={"data": {"columns": columns}})
    assert (job.status, job.attempt, job.error.code) == ("failed", 0, "invalid_value")
    assert f"and {model} reads" in job.error.message


@pytest.mark.parametrize(
    ("rows", "contrastive", "words"),
    [
        pytest.param([{"vector": [n, 1.0], "label": n % 4} for n in range(20)], {}, "24 dimensions", id="dimension"),
        pytest.param(pair_rows(1, 20), {"model": {"adapter": "mlp"}}, "is 'linear'", id="form"),
    ],
)
def test_what_does_not_fit_a_tuned_adapter_fails_before_it_is_queued(
    shared: Installation, trained: Any, rows: list[dict[str, Any]], contrastive: dict[str, Any], words: str
) -> None:
    job = create(shared, rows, model=trained.fine_tuned_model, contrastive=contrastive)
    assert (job.status, job.attempt, job.error.code) == ("failed", 0, "invalid_value")
    assert words in job.error.message


def test_a_validation_file_of_another_dimension_fails_before_it_is_queued(shared: Installation) -> None:
    other = [{"anchor_vector": [n, 1.0], "positive_vector": [n, 2.0]} for n in range(9)]
    job = create(shared, pair_rows(1, 20), validation_file=shared.upload(other))
    assert (job.status, job.error.code) == ("failed", "invalid_value")
    assert "24 dimensions, and the file's vectors have 2" in job.error.message


# --- what is refused when it is served ---


@pytest.mark.parametrize(
    ("given", "code", "param", "words"),
    [
        pytest.param("a text", "wrong_input", "input", "reads vectors of 24 numbers", id="a text"),
        pytest.param(["a text", "another"], "wrong_input", "input.0", "reads vectors", id="texts"),
        pytest.param([[1.0] * D, [1.0] * 3], "dimension_mismatch", "input.1", "has 3 numbers", id="a short one"),
        pytest.param([1.0] * (D + 1), "dimension_mismatch", "input", "has 25 numbers", id="a long one alone"),
        pytest.param([[1.0] * D, [0.0] * D], "zero_vector", "input.1", "all zeros", id="zeros"),
        pytest.param([[1.0] * D, ["x"] * D], "invalid_type", "input", "input.1 must be a vector", id="no numbers"),
        pytest.param([[1.0] * D, "a text"], "invalid_type", "input", "input.1 must be a vector", id="both kinds"),
        pytest.param([[1.0] * D, [True] * D], "invalid_type", "input", "input.1 must be a vector", id="booleans"),
        pytest.param([[1.0] * D] * 2049, "too_many_inputs", "input", "2049 vectors", id="too many"),
        pytest.param([[]], "invalid_type", "input", "must be a vector", id="no numbers at all"),
    ],
)
def test_what_an_adapter_cannot_take_is_refused_with_its_place(
    shared: Installation, trained: Any, given: Any, code: str, param: str, words: str
) -> None:
    asked = {"model": trained.fine_tuned_model, "input": given}
    answer = shared.request("POST", "/v1/embeddings", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert words in error["message"]


def test_nan_is_refused_with_its_place(shared: Installation, trained: Any) -> None:
    body = f'{{"model": "{trained.fine_tuned_model}", "input": [[1.0, 2.0], [NaN, 1.0]]}}'
    answer = shared.request("POST", "/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "not_finite", "input.1.0")


def test_vectors_have_no_prompt(shared: Installation, trained: Any) -> None:
    body = {"model": trained.fine_tuned_model, "input": [1.0] * D, "input_type": "query"}
    answer = shared.request("POST", "/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "input_type")


def test_vectors_for_a_text_encoder_are_refused(shared: Installation) -> None:
    answer = shared.request("POST", "/v1/embeddings", json={"model": TINY, "input": [[0.5, 0.25]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_input")


def test_an_adapter_that_nobody_trained_embeds_nothing(shared: Installation) -> None:
    answer = shared.request("POST", "/v1/embeddings", json={"model": "adapter", "input": [0.5, 0.25]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "model")


def test_one_vector_many_and_extreme_ones_come_out_with_length_one(shared: Installation, trained: Any) -> None:
    model = trained.fine_tuned_model
    vectors, _ = pairs_of(6, 700)
    many = embed(shared, model, vectors)
    assert np.linalg.norm(many, axis=1) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(embed(shared, model, vectors[0]), many[:1], atol=1e-6)
    for scale in (1e-290, 1e290):
        np.testing.assert_allclose(embed(shared, model, scale * vectors[:3]), many[:3], atol=1e-6)
    halves = embed(shared, model, vectors[:3], dimensions=D // 2)
    np.testing.assert_allclose(halves, unit(many[:3, : D // 2]), atol=1e-6)


def test_the_service_is_ready_when_an_adapter_was_used_last(shared: Installation, trained: Any) -> None:
    embed(shared, trained.fine_tuned_model, [1.0] * D)
    assert shared.request("GET", "/readyz").status_code == 200


def test_similarity_takes_vectors_as_well(shared: Installation, trained: Any) -> None:
    model = trained.fine_tuned_model
    anchors, positives = pairs_of(7, 3)
    cosines = embed(shared, model, anchors) @ embed(shared, model, positives).T

    pairs = {"pairs": np.stack([anchors, positives], axis=1).tolist()}
    ranking = {"query": anchors[0].tolist(), "documents": positives.tolist()}
    of_pairs, ranked = (
        shared.request("POST", "/v1/similarity", json={"model": model, **asked}).json() for asked in (pairs, ranking)
    )
    assert [entry["score"] for entry in of_pairs["data"]] == pytest.approx(np.diag(cosines), abs=1e-5)
    assert [entry["index"] for entry in ranked["data"]] == np.argsort(-cosines[0]).tolist()
    assert ranked["usage"]["total_tokens"] == 0

    for model_id, asked, code, param in (
        (model, {"pairs": [[[1.0] * D, [0.0] * D]]}, "zero_vector", "pairs.0.1"),
        (model, {"query": [1.0] * D, "documents": [[1.0] * D, [1.0]]}, "dimension_mismatch", "documents.1"),
        (model, {"query": "a text", "documents": [[1.0] * D]}, "wrong_input", "query"),
        (TINY, {"query": "a text", "documents": [[0.5] * D]}, "wrong_input", "documents.0"),
    ):
        answer = shared.request("POST", "/v1/similarity", json={"model": model_id, **asked})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a script as short as that one closes nothing
def test_the_documentations_script_works_as_it_is(
    shared: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "data.md"
    labelled = next(block for block in code_blocks(page, "json") if '"vector"' in block)
    (tmp_path / "vectors.jsonl").write_text(labelled + '{"vector": [0.2, 0.8, 0.4], "label": "billing"}\n')
    monkeypatch.setenv("OPENAI_BASE_URL", f"{shared.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", shared.key)
    *_, create_it, use_it = code_blocks(page, "python")
    names: dict[str, Any] = {}
    with monkeypatch.context() as there:
        there.chdir(tmp_path)
        exec(create_it, names)
    shared.validate(names["file"].id)
    assert shared.train(shared.prepare(names["job"])).status == "succeeded"
    exec(use_it, names)
    names["client"].close()
    assert [len(entry.embedding) for entry in names["answer"].data] == [3, 3]
