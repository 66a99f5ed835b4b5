"""The unmodified `openai` client against the real service."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.installation import PAIRS, TINY, Installation

LABELS = [{"text": f"{animal} number {n}", "label": animal} for animal in ("cat", "dog", "owl") for n in range(8)]
HYPERPARAMETERS = "method.contrastive.hyperparameters"


@pytest.fixture(scope="module")
def client(shared: Installation) -> OpenAI:
    return shared.openai


@pytest.fixture(scope="module")
def trained(shared: Installation, pairs_file: str) -> Any:
    """A job that succeeded."""
    done = shared.train_as_worker(shared.create_job(pairs_file, suffix="words"))
    assert done.status == "succeeded", done.error
    return done


def _with_async_client(installation: Installation, use: Callable[[AsyncOpenAI], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{installation.url}/v1", api_key=installation.key, max_retries=0) as client:
            await use(client)

    asyncio.run(run())


def _embed(client: OpenAI, model: str, texts: str | list[str], **arguments: Any) -> np.ndarray:
    return np.array([item.embedding for item in client.embeddings.create(model=model, input=texts, **arguments).data])


# Files


def test_a_file_is_uploaded_validated_by_a_worker_read_back_and_deleted(shared: Installation, client: OpenAI) -> None:
    content = b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, PAIRS)).encode() + b"\r\n\r\n"
    with shared.worker("cpu"):
        uploaded = client.files.create(file=("sätze.jsonl", content), purpose="fine-tune")
        assert (uploaded.status, uploaded.filename, uploaded.bytes) == ("uploaded", "sätze.jsonl", len(content))
        file = client.files.wait_for_processing(uploaded.id, poll_interval=0.1, max_wait_seconds=60)
    assert (file.status, file.rows, file.format, file.errors) == ("processed", len(PAIRS), "pairs", [])
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)
    assert file.id not in [listed.id for listed in client.files.list()]


def test_files_are_listed_over_pages_newest_first_or_oldest_first(installation: Installation) -> None:
    ids = [installation.upload(PAIRS, validated=False) for _ in range(5)]
    client = installation.openai
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    assert [file.id for file in client.files.list(purpose="assistants")] == []
    first = client.files.list(limit=2)
    assert (first.has_more, [file.id for file in first.data]) == (True, [ids[4], ids[3]])
    last = client.files.list(limit=2, after=ids[1])
    assert (last.has_more, [file.id for file in last.data]) == (False, [ids[0]])


def test_a_file_that_a_job_reads_is_not_deleted(installation: Installation) -> None:
    file_id = installation.upload(PAIRS)
    job = installation.create_job(file_id)
    with pytest.raises(openai.ConflictError) as refusal:
        installation.openai.files.delete(file_id)
    assert refusal.value.code == "file_in_use"
    assert job.id in refusal.value.message
    installation.openai.fine_tuning.jobs.cancel(job.id)
    assert installation.openai.files.delete(file_id).deleted


def test_the_async_client_handles_files(shared: Installation) -> None:
    content = json.dumps(PAIRS[0]).encode()

    async def use(client: AsyncOpenAI) -> None:
        file = await client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        assert (await client.files.retrieve(file.id)).id == file.id
        assert (await client.files.content(file.id)).content == content
        assert file.id in [listed.id async for listed in client.files.list(limit=1)]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)

    _with_async_client(shared, use)


# Jobs


def test_a_plain_job_runs_with_every_auto_chosen_and_told(shared: Installation, client: OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=TINY, training_file=shared.upload(LABELS))
    assert job.status == "validating_files"
    done = shared.train_as_worker(shared.prepare(job))
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model.startswith(f"ft:{TINY}:default::")
    told = done.method.model_dump() if hasattr(done.method, "model_dump") else done.method
    chosen = told["contrastive"]["hyperparameters"]
    assert "auto" not in json.dumps([chosen, told["contrastive"]["loss"]])
    assert (chosen["n_epochs"], chosen["batch_size"], chosen["max_seq_length"]) == (10, 6, 48)
    assert chosen["learning_rate"] > 0
    assert told["contrastive"]["loss"]["temperature"] > 0
    assert (done.hyperparameters.n_epochs, done.hyperparameters.batch_size) == (10, 6)
    assert done.trained_tokens > 0
    assert done.finished_at >= done.started_at >= done.created_at


def test_openais_own_hyperparameters_are_taken_and_told(shared: Installation, client: OpenAI, pairs_file: str) -> None:
    plain = shared.prepare(client.fine_tuning.jobs.create(model=TINY, training_file=pairs_file))
    job = client.fine_tuning.jobs.create(
        model=TINY,
        training_file=pairs_file,
        hyperparameters={"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 2},
    )
    job = shared.prepare(job)
    told = job.hyperparameters
    assert (told.n_epochs, told.batch_size, told.learning_rate_multiplier) == (1, 4, 2)
    chosen = job.method.contrastive["hyperparameters"]
    assert (chosen["n_epochs"], chosen["batch_size"]) == (1, 4)
    assert chosen["learning_rate"] == 2 * plain.method.contrastive["hyperparameters"]["learning_rate"]


def test_what_method_says_wins_over_openais_hyperparameters(
    shared: Installation, client: OpenAI, pairs_file: str
) -> None:
    job = client.fine_tuning.jobs.create(
        model=TINY,
        training_file=pairs_file,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        method={"type": "contrastive", "contrastive": {"hyperparameters": {"batch_size": 8}}},
    )
    told = shared.prepare(job).hyperparameters
    assert (told.n_epochs, told.batch_size) == (1, 8)


def test_a_job_tells_again_what_it_was_given(client: OpenAI, shared: Installation, pairs_file: str) -> None:
    created = shared.create_job(pairs_file, suffix="a-b.c_1", seed=7, metadata={"stage": "trial"}, integrations=[])
    job = client.fine_tuning.jobs.retrieve(created.id)
    assert (job.suffix, job.seed, job.metadata) == ("a-b.c_1", 7, {"stage": "trial"})
    assert (job.model, job.training_file, job.validation_file) == (TINY, pairs_file, None)
    assert (job.status, job.attempt, job.organization_id, job.error) == ("queued", 1, "default", None)


def test_jobs_are_listed_over_pages_and_by_metadata(installation: Installation) -> None:
    file_id = installation.upload(PAIRS)
    ids = [
        installation.create_job(file_id, metadata={"round": str(n % 2), "owner": "me"}).id
        for n in range(5)
    ]  # fmt: skip
    jobs = installation.openai.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2)] == ids[::-1]
    assert [job.id for job in jobs.list(limit=1, metadata={"round": "1"})] == [ids[3], ids[1]]
    assert [job.id for job in jobs.list(metadata={"round": "1", "owner": "you"})] == []
    page = jobs.list(limit=2, after=ids[1])
    assert ([job.id for job in page.data], page.has_more) == ([ids[0]], False)


def test_a_job_is_cancelled_once_and_for_all(shared: Installation, client: OpenAI, pairs_file: str) -> None:
    job = shared.create_job(pairs_file)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages.count("Job cancelled") == 1


def test_a_job_that_ended_is_not_cancelled(client: OpenAI, trained: Any) -> None:
    with pytest.raises(openai.ConflictError) as refusal:
        client.fine_tuning.jobs.cancel(trained.id)
    assert refusal.value.code == "job_already_ended"
    assert refusal.value.response.headers["x-should-retry"] == "false"
    assert client.fine_tuning.jobs.retrieve(trained.id).status == "succeeded"


def test_a_job_is_paused_and_resumed(shared: Installation, client: OpenAI, pairs_file: str) -> None:
    jobs = client.fine_tuning.jobs
    job = shared.create_job(pairs_file)
    for _ in range(2):
        assert jobs.pause(job.id).status == "paused"
    assert list(jobs.checkpoints.list(job.id)) == []
    assert jobs.resume(job.id).status == "queued"
    again = jobs.resume(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert jobs.cancel(job.id).status == "cancelled"
    for action in (jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError) as refusal:
            action(job.id)
        assert refusal.value.code == "job_already_ended"


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_events_come_newest_first_over_pages_without_gap_or_repeat(client: OpenAI, trained: Any, limit: int) -> None:
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=limit))
    numbers = [event.seq for event in events]
    assert numbers == list(range(len(events), 0, -1))
    assert len({event.id for event in events}) == len(events)
    assert trained.fine_tuned_model in events[0].message
    assert "created" in events[-1].message
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 3


def test_the_async_client_handles_jobs(shared: Installation, pairs_file: str) -> None:
    async def use(client: AsyncOpenAI) -> None:
        jobs = client.fine_tuning.jobs
        job = await jobs.create(model=TINY, training_file=pairs_file, metadata={"client": "async"})
        assert (await jobs.retrieve(job.id)).status == "validating_files"
        assert [listed.id async for listed in jobs.list(metadata={"client": "async"})] == [job.id]
        assert (await jobs.cancel(job.id)).status == "cancelled"
        assert [event.seq async for event in jobs.list_events(job.id, limit=1)] == [3, 2, 1]

    _with_async_client(shared, use)


# Models


def test_a_model_is_listed_retrieved_used_and_deleted(shared: Installation, client: OpenAI, pairs_file: str) -> None:
    model_id = shared.publish(shared.create_job(pairs_file))
    assert {"/", ":"} <= set(model_id)
    assert model_id in [model.id for model in client.models.list()]
    model = client.models.retrieve(model_id)
    assert (model.id, model.owned_by, model.base_model, model.dimension) == (model_id, "default", TINY, 32)
    assert _embed(client, model_id, "a").shape == (1, 32)
    assert client.models.delete(model_id).deleted
    assert model_id not in [model.id for model in client.models.list()]
    for use in (client.models.retrieve, client.models.delete, lambda name: _embed(client, name, "a")):
        with pytest.raises(openai.NotFoundError) as refusal:
            use(model_id)
        assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_base_models_are_listed_and_stay(client: OpenAI) -> None:
    base = client.models.retrieve(TINY)
    assert (base.owned_by, base.kind, base.max_seq_length) == ("likeness", "base", 48)
    with pytest.raises(openai.NotFoundError):
        client.models.delete(TINY)
    assert TINY in [model.id for model in client.models.list()]


def test_the_async_client_handles_models(shared: Installation, trained: Any) -> None:
    async def use(client: AsyncOpenAI) -> None:
        assert trained.fine_tuned_model in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(trained.fine_tuned_model)).fine_tuning_job == trained.id

    _with_async_client(shared, use)


# Embeddings


def test_training_changes_what_a_model_answers(client: OpenAI, trained: Any) -> None:
    base, tuned = (_embed(client, model, "the word a") for model in (TINY, trained.fine_tuned_model))
    assert not np.allclose(base, tuned, atol=1e-4)
    assert np.linalg.norm(tuned) == pytest.approx(1, abs=1e-6)


def test_base64_and_floats_are_the_same_vectors(shared: Installation, client: OpenAI) -> None:
    texts = ["one", "two"]
    # The client asks for base64 and decodes it unless told otherwise.
    np.testing.assert_allclose(
        _embed(client, TINY, texts), _embed(client, TINY, texts, encoding_format="float"), atol=1e-7
    )
    raw = shared.request(
        "POST", "/v1/embeddings", json={"model": TINY, "input": "one", "encoding_format": "base64"}
    ).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(decoded, _embed(client, TINY, "one")[0], atol=1e-7)


def test_many_texts_keep_their_order_and_are_what_they_are_alone(client: OpenAI) -> None:
    texts = [f"{'long ' * (n % 40)}text {n}" for n in range(300)]
    answer = client.embeddings.create(model=TINY, input=texts)
    assert [item.index for item in answer.data] == list(range(300))
    together = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for n in (0, 1, 39, 150, 299):
        np.testing.assert_allclose(together[n], _embed(client, TINY, texts[n])[0], atol=1e-6)


def test_the_most_texts_there_may_be_fit_a_request(client: OpenAI) -> None:
    assert _embed(client, TINY, ["text"] * 2048).shape == (2048, 32)


@pytest.mark.parametrize("dimensions", [1, 8, 31, 32])
def test_dimensions_cut_and_normalise_again(client: OpenAI, dimensions: int) -> None:
    whole = _embed(client, TINY, ["one", "two"])
    kept = whole[:, :dimensions]
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(_embed(client, TINY, ["one", "two"], dimensions=dimensions), expected, atol=1e-6)


def test_usage_counts_what_was_read_and_tells_what_was_cut(client: OpenAI) -> None:
    usage = client.embeddings.create(model=TINY, input=["word", "word " * 1000, "word"]).usage
    assert usage.prompt_tokens == usage.total_tokens == 3 + 48 + 3
    assert usage.truncated == [1]


def test_the_async_client_embeds(shared: Installation, client: OpenAI) -> None:
    async def use(async_client: AsyncOpenAI) -> None:
        requests = [async_client.embeddings.create(model=TINY, input=f"text {n}") for n in range(20)]
        vectors = [answer.data[0].embedding for answer in await asyncio.gather(*requests)]
        np.testing.assert_allclose(vectors, _embed(client, TINY, [f"text {n}" for n in range(20)]), atol=1e-6)

    _with_async_client(shared, use)


# Errors

WRONG_CALLS = [
    pytest.param(
        lambda client: client.embeddings.create(model="no/such", input="a"),
        openai.NotFoundError, "model_not_found", "model", id="no such model",
    ),
    pytest.param(
        lambda client: client.embeddings.create(model=TINY, input=[]),
        openai.BadRequestError, "empty_input", "input", id="nothing to embed",
    ),
    pytest.param(
        lambda client: client.embeddings.create(model=TINY, input="a", dimensions=33),
        openai.BadRequestError, "out_of_range", "dimensions", id="more dimensions than there are",
    ),
    pytest.param(
        lambda client: client.files.create(file=("a", b"{}"), purpose="assistants"),
        openai.BadRequestError, "invalid_value", "purpose", id="another purpose",
    ),
    pytest.param(
        lambda client: client.fine_tuning.jobs.create(model=TINY, training_file="file-none"),
        openai.NotFoundError, "not_found", "training_file", id="no such file",
    ),
    pytest.param(
        lambda client: client.fine_tuning.jobs.retrieve("ftjob-none"),
        openai.NotFoundError, "not_found", None, id="no such job",
    ),
    pytest.param(
        lambda client: client.with_options(api_key="sk-none").models.list(),
        openai.AuthenticationError, "invalid_api_key", None, id="no such key",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "code", "param"), WRONG_CALLS)
def test_errors_arrive_as_the_clients_own_classes(
    client: OpenAI, call: Callable[[OpenAI], Any], kind: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(kind) as refusal:
        call(client)
    assert (refusal.value.code, refusal.value.param) == (code, param)
    assert refusal.value.request_id == refusal.value.response.headers["x-request-id"]


@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize(
    ("place", "param"),
    [
        pytest.param("method", f"{HYPERPARAMETERS}.batch_size", id="in the method"),
        pytest.param("hyperparameters", "hyperparameters.batch_size", id="in OpenAI's place"),
    ],
)
def test_a_batch_too_small_for_labels_is_refused_before_it_is_queued(
    shared: Installation, client: OpenAI, batch_size: int, place: str, param: str
) -> None:
    asked: dict[str, Any] = {"batch_size": batch_size}
    if place == "method":
        asked = {"type": "contrastive", "contrastive": {"hyperparameters": asked}}
    with pytest.raises(openai.BadRequestError) as refusal:
        client.fine_tuning.jobs.create(model=TINY, training_file=shared.upload(LABELS), **{place: asked})
    assert (refusal.value.code, refusal.value.param) == ("out_of_range", param)
    assert "at least 4" in refusal.value.message


def test_a_batch_of_two_is_enough_for_pairs(shared: Installation, client: OpenAI, pairs_file: str) -> None:
    job = client.fine_tuning.jobs.create(model=TINY, training_file=pairs_file, hyperparameters={"batch_size": 2})
    assert shared.prepare(job).status == "queued"
