"""Jobs from scratch: from a file of texts to an encoder that no weights of anybody's went into."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer
from sqlalchemy import select
from tokenizers import Tokenizer

from api_schemas import inputs
from api_schemas.defaults import SCRATCH_LEARNING_RATE
from api_schemas.methods import ScratchOptions
from encoders import registry
from storage.artifacts import ArtifactStore
from storage.job_base import JobBase
from storage.tables import Model
from tests.installation import HELD_OUT, PAIRS, TINY, Installation
from tests.workers.following import messages_of
from workers import tasks

SMALL = {"layers": 1, "hidden_size": 64, "vocabulary_size": 512, "max_seq_length": 24}
TEXTS = ["the word a", "B said again", "something else, and a good deal longer than the others", "ü 中文"]


def translated(seed: int, n: int) -> list[dict[str, str]]:
    """Pairs that share no word: each word of the anchor has one word that stands for it in the positive."""
    rng = random.Random(seed)
    words = [f"{first}{vowel}{last}" for first in "bdfgk" for vowel in "aeiou" for last in "lmn"][:40]
    chosen = [rng.sample(words, 3) for _ in range(n)]
    return [
        {"anchor": " ".join(three), "positive": " ".join(word[::-1] + "ix" for word in rng.sample(three, 3))}
        for three in chosen
    ]


def create(installation: Installation, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    """A short job, prepared as a worker does; `contrastive` holds what the method has beside hyperparameters."""
    hyperparameters = {"max_steps": 3, "batch_size": 8, "precision": "fp32", **arguments.pop("hyperparameters", {})}
    contrastive = {"model": {"scratch": SMALL}, **arguments.pop("contrastive", {}), "hyperparameters": hyperparameters}
    job = installation.openai.fine_tuning.jobs.create(
        model=arguments.pop("model", "scratch"),
        training_file=installation.upload(rows),
        method={"type": "contrastive", "contrastive": contrastive},
        **arguments,
    )
    return installation.prepare(job)


def embed(installation: Installation, model: str, texts: list[str]) -> np.ndarray:
    answer = installation.openai.embeddings.create(model=model, input=texts)
    return np.array([entry.embedding for entry in answer.data])


def base_of(installation: Installation, job: Any) -> JobBase:
    return JobBase(ArtifactStore(installation.settings.artifacts_dir), job.id)


def folder_of(installation: Installation, job: Any) -> Path:
    """The published model's."""
    with installation.database.session_across_teams() as session:
        row = session.scalars(select(Model).where(Model.job_id == job.id)).one()
    store = ArtifactStore(installation.settings.artifacts_dir)
    assert store.damage_of(row.artifact) is None
    return store.model(row.artifact)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_of(installation: Installation, job: Any) -> str:
    model: Any = installation.openai.models.retrieve(job.fine_tuned_model)
    return str(model.weights_sha256)


@pytest.fixture(scope="module")
def trained(shared: Installation) -> Any:
    """A job of three steps, with a validation file."""
    job = shared.train(create(shared, PAIRS, validation_file=shared.upload(HELD_OUT), seed=3))
    assert job.status == "succeeded", job.error
    return job


# --- what it learns ---


def test_words_that_were_never_seen_together_are_matched(shared: Installation) -> None:
    held_out = shared.upload(translated(2, 80))
    hyperparameters = {"max_steps": None, "n_epochs": 6, "batch_size": 64, "learning_rate": 5e-3}
    job = shared.train(create(shared, translated(1, 400), validation_file=held_out, hyperparameters=hyperparameters))
    assert job.status == "succeeded", job.error
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation").json()
    [mrr] = [metric for metric in found["metrics"] if metric["name"] == "mrr"]
    assert mrr["base"] < 0.2
    assert mrr["tuned"] > 0.6


def test_what_is_published_is_served_and_opens_in_sentence_transformers(shared: Installation, trained: Any) -> None:
    folder = folder_of(shared, trained)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    ours = embed(shared, trained.fine_tuned_model, TEXTS)
    assert ours.shape == (4, 64)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_can_be_the_model_of_a_further_job(shared: Installation, trained: Any) -> None:
    contrastive = {"model": {"freeze_layers": 1, "projection_dim": 8}}
    further = shared.train(create(shared, HELD_OUT, model=trained.fine_tuned_model, contrastive=contrastive))
    assert further.status == "succeeded", further.error
    model: Any = shared.openai.models.retrieve(further.fine_tuned_model)
    assert (model.base_model, model.dimension, model.max_seq_length) == ("scratch", 8, 24)
    of_both = [folder_of(shared, job) / "tokenizer.json" for job in (trained, further)]
    assert of_both[0].read_bytes() == of_both[1].read_bytes()
    assert further.method.contrastive["hyperparameters"]["learning_rate"] < SCRATCH_LEARNING_RATE


# --- what is told ---


def test_the_models_say_what_they_are(shared: Installation, trained: Any) -> None:
    listed: dict[str, Any] = {model.id: model for model in shared.openai.models.list()}
    base, tuned = listed["scratch"], listed[trained.fine_tuned_model]
    assert (base.kind, base.reads, base.dimension, base.max_seq_length) == ("base", "texts", None, 256)
    assert tuned.id.startswith("ft:scratch:")
    assert (tuned.base_model, tuned.reads, tuned.dimension, tuned.max_seq_length) == ("scratch", "texts", 64, 24)


def test_what_is_left_out_is_chosen_for_an_encoder_from_scratch_and_echoed(shared: Installation) -> None:
    client = shared.openai.fine_tuning.jobs
    job = shared.prepare(client.create(model="scratch", training_file=shared.upload(PAIRS)))
    assert job.status == "queued", job.error
    assert job.method.contrastive["model"]["scratch"] == ScratchOptions().model_dump()
    hyperparameters = job.method.contrastive["hyperparameters"]
    assert (hyperparameters["learning_rate"], hyperparameters["max_seq_length"]) == (SCRATCH_LEARNING_RATE, 256)
    client.cancel(job.id)


def test_its_name_and_its_length_are_the_same_in_the_contract_and_among_the_encoders() -> None:
    assert inputs.SCRATCH == registry.SCRATCH
    assert registry.BASE_MODELS["scratch"].max_seq_length == ScratchOptions().max_seq_length


def test_events_and_the_card_tell_what_it_was_made_of(shared: Installation, trained: Any) -> None:
    messages = messages_of(shared, trained.id)
    [made] = [message for message in messages if message.startswith("Trained a tokenizer of ")]
    assert "on 20 rows, and made an encoder of 0.1 million random weights" in made
    card = shared.request("GET", f"/v1/models/{trained.fine_tuned_model}/card").text
    assert "# A text encoder trained from scratch" in card
    assert "before training, with random weights" in card
    assert "No other model is in it" in card
    assert "base_model" not in card.partition("# A text")[0]
    assert "ask its operator" not in card


# --- the same again ---


def test_the_same_file_and_seed_give_the_same_model_and_another_seed_does_not(
    shared: Installation, trained: Any
) -> None:
    shutil.rmtree(shared.settings.derived_dir)
    again, other = (shared.train(create(shared, PAIRS, seed=seed)) for seed in (3, 4))
    assert weights_of(shared, again) == weights_of(shared, trained)
    assert weights_of(shared, other) != weights_of(shared, trained)


def test_an_interrupted_job_goes_on_with_its_own_tokenizer_and_ends_at_the_same_bytes(
    shared: Installation, trained: Any
) -> None:
    job = create(shared, PAIRS, seed=3)
    kept = contents_of(base_of(shared, job).verified())
    assert shared.interrupt(job, after_step=2).status == "queued"
    assert contents_of(base_of(shared, job).verified()) == kept

    ended = shared.train_as_worker(job)

    assert any("Goes on from the checkpoint after step 2 of 3" in each for each in messages_of(shared, job.id))
    assert weights_of(shared, ended) == weights_of(shared, trained)
    assert not base_of(shared, job).folder.exists(), "it is there as long as the job"


def test_what_an_earlier_preparation_has_made_is_used_and_what_is_damaged_is_made_again(shared: Installation) -> None:
    client = shared.openai.fine_tuning.jobs
    job = client.create(
        model="scratch",
        training_file=shared.upload(PAIRS),
        method={"type": "contrastive", "contrastive": {"model": {"scratch": SMALL}}},
    )
    base = base_of(shared, job)
    with base.publishing() as folder:
        (folder / "tokenizer.json").write_text("another's")
    (base.folder / "tokenizer.json").write_text("damaged")
    assert not base.is_whole()
    assert shared.prepare(job).status == "queued"
    assert base.is_whole()
    client.cancel(job.id)
    assert not base.folder.exists()


def test_a_base_that_is_damaged_fails_the_job_with_what_to_do(shared: Installation) -> None:
    job = create(shared, PAIRS)
    (base_of(shared, job).folder / "model.safetensors").write_bytes(b"")
    job = shared.train(job)
    assert (job.status, job.error.code) == ("failed", "artifact_corrupt")
    assert "Create the job again" in job.error.message


# --- what it must not know ---


def test_rows_that_are_held_out_teach_the_tokenizer_nothing(shared: Installation) -> None:
    """Each row has a word of its own, twice: whose rows were read, those words are in the vocabulary."""
    names = [f"qx{chr(97 + number // 26)}{chr(97 + number % 26)}j" for number in range(120)]
    rows = [{"anchor": f"{name} {name}", "positive": f"number {number}"} for number, name in enumerate(names)]
    contrastive = {"model": {"scratch": {**SMALL, "vocabulary_size": 4096}}, "data": {"eval_split": 0.25}}
    job = shared.train(create(shared, rows, contrastive=contrastive))
    assert job.status == "succeeded", job.error
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation").json()
    vocabulary = Tokenizer.from_file(str(folder_of(shared, job) / "tokenizer.json")).get_vocab()
    unknown = {name for name in names if f"Ġ{name}" not in vocabulary}
    assert len(unknown) == found["split"]["rows"] == 30
    examples = {example["query"].partition(" ")[0] for example in found["gained"] + found["lost"]}
    assert examples
    assert examples <= unknown


def test_prompts_are_among_what_the_tokenizer_is_trained_on(shared: Installation) -> None:
    prompts = {"query": "zyqwv: ", "document": "page: "}
    job = create(shared, PAIRS, contrastive={"model": {"scratch": SMALL, "prompts": prompts}})
    tokenizer = Tokenizer.from_file(str(base_of(shared, job).verified() / "tokenizer.json"))
    assert tokenizer.encode("zyqwv").tokens == ["[CLS]", "Ġzyqwv", "[SEP]"]
    assert shared.train(job).status == "succeeded"


# --- odd files ---


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        pytest.param(
            [{"anchor": string.ascii_lowercase[n], "positive": string.punctuation[n]} for n in range(20)],
            "occurs twice",
            id="one character",
        ),
        pytest.param(
            [{"anchor": "same " * n, "positive": "word " * n} for n in range(1, 12)],
            "Trained a tokenizer",
            id="one word",
        ),
        pytest.param(
            [{"anchor": f"\u200b{'!' * n}", "positive": f"{'?' * n}"} for n in range(1, 20)], "Trained", id="no letters"
        ),
        pytest.param([{"text": "猫が好き" + "犬" * n} for n in range(20)], "Trained a tokenizer", id="no spaces"),
        pytest.param(
            [{"text": f"the word {n}", "label": n % 5} for n in range(30)], "Trained a tokenizer", id="labels"
        ),
    ],
)
def test_odd_files_work_or_say_why_not(shared: Installation, rows: list[dict[str, Any]], told: str) -> None:
    job = shared.train(create(shared, rows))
    assert job.status == "succeeded", job.error
    assert any(told in message for message in messages_of(shared, job.id))


def test_a_file_of_one_pair_again_and_again_is_refused(shared: Installation) -> None:
    rows = [{"anchor": "same word", "positive": "same word"}] * 20
    with pytest.raises(openai.BadRequestError) as caught:
        create(shared, rows)
    assert caught.value.code == "file_invalid"


def test_several_files_are_read_and_those_that_only_columns_explain(shared: Installation) -> None:
    renamed = [{"title": row["anchor"], "body": row["positive"]} for row in PAIRS]
    more = shared.upload([{"title": f"zebra {n}", "body": f"zebra number {n}"} for n in range(20)])
    data = {"columns": {"anchor": "title", "positive": "body"}, "additional_training_files": [more]}
    job = create(shared, renamed, contrastive={"model": {"scratch": SMALL}, "data": data})
    tokenizer = Tokenizer.from_file(str(base_of(shared, job).verified() / "tokenizer.json"))
    assert {"Ġzebra", "Ġword"} <= tokenizer.get_vocab().keys()
    assert shared.train(job).status == "succeeded"


# --- what doesn't go together ---


@pytest.mark.parametrize(
    ("model", "options", "param", "words"),
    [
        pytest.param(TINY, {"scratch": {}}, "scratch", "has a size of its own", id="of a model that is there"),
        pytest.param("adapter", {"scratch": {}}, "scratch", "has a size of its own", id="of an adapter"),
        pytest.param("scratch", {"adapter": "mlp"}, "adapter", "this model reads texts", id="an adapter"),
        pytest.param("scratch", {"train": "lora"}, "train", "are random", id="a LoRA"),
        pytest.param("scratch", {"train": "projection"}, "train", "are random", id="a projection alone"),
        pytest.param("scratch", {"freeze_layers": 1}, "freeze_layers", "are random", id="frozen layers"),
        pytest.param("scratch", {"scratch": {"layers": 0}}, "scratch.layers", "at least 1", id="no layers"),
        pytest.param(
            "scratch", {"scratch": {"hidden_size": 100}}, "scratch.hidden_size", "a multiple of 64", id="a width"
        ),
        pytest.param(
            "scratch", {"scratch": {"vocabulary_size": 100}}, "scratch.vocabulary_size", "at least 512", id="few tokens"
        ),
    ],
)
def test_options_that_do_not_go_with_the_model_are_refused_at_once(
    shared: Installation, model: str, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        create(shared, PAIRS, model=model, contrastive={"model": options})
    assert caught.value.param == f"method.contrastive.model.{param}"


def test_the_size_of_a_tuned_model_cannot_be_asked_for(shared: Installation, trained: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="has a size of its own"):
        create(shared, PAIRS, model=trained.fine_tuned_model)


def test_dimensions_beyond_its_vectors_fail_before_it_is_queued(shared: Installation) -> None:
    job = create(shared, PAIRS, contrastive={"model": {"scratch": SMALL, "matryoshka_dims": [65]}})
    assert (job.status, job.error.code) == ("failed", "invalid_value")
    assert "matryoshka_dims has 65" in job.error.message


def test_vectors_are_refused(shared: Installation) -> None:
    with pytest.raises(openai.BadRequestError, match="The file holds vectors") as caught:
        create(shared, [{"vector": [n, 1.0], "label": n % 4} for n in range(20)])
    assert caught.value.param == "training_file"


def test_vectors_that_only_columns_explain_are_refused_before_a_tokenizer_is_trained(shared: Installation) -> None:
    rows = [{"a": [n, 1.0], "b": [n, 2.0]} for n in range(20)]
    data = {"columns": {"anchor_vector": "a", "positive_vector": "b"}}
    job = create(shared, rows, contrastive={"model": {"scratch": SMALL}, "data": data})
    assert (job.status, job.error.code) == ("failed", "invalid_value")
    assert "The file holds vectors" in job.error.message
    assert not base_of(shared, job).folder.exists()


def test_one_that_nobody_trained_embeds_nothing(shared: Installation) -> None:
    answer = shared.request("POST", "/v1/embeddings", json={"model": "scratch", "input": "a text"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "model")
    assert "is not trained" in error["message"]


def test_a_cancelled_job_makes_nothing(shared: Installation) -> None:
    client = shared.openai.fine_tuning.jobs
    job = client.create(model="scratch", training_file=shared.upload(PAIRS))
    client.cancel(job.id)
    tasks.prepare(job.id)
    assert not base_of(shared, job).folder.exists()
