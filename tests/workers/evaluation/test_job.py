"""Whole jobs, as a user meets their evaluation."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.installation import HELD_OUT, PAIRS, TINY, Installation
from tests.workers.following import messages_of

MANY = [{"anchor": f"word {number}", "positive": f"said {number} again"} for number in range(120)]
LABELLED = [{"text": f"the word {word} and {number}", "label": word} for word in "abcde" for number in range(24)]
TEXTS = ["word 7", "something else"]


@pytest.fixture(scope="module")
def carved(shared: Installation) -> Any:
    """A job of 120 pairs, of which the service holds some out."""
    return trained(shared, MANY)


def trained(shared: Installation, rows: Any, **contrastive: Any) -> Any:
    asked = {"hyperparameters": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-3}, **contrastive}
    method = {"type": "contrastive", "contrastive": asked}
    job = shared.openai.fine_tuning.jobs.create(model=TINY, training_file=shared.upload(rows), method=method, seed=3)
    job = shared.train(shared.prepare(job))
    assert job.status == "succeeded", job.error
    return job


def evaluation_of(shared: Installation, job: Any) -> dict[str, Any]:
    answer = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_tenth_of_the_rows_is_held_out_and_asked_about(shared: Installation, carved: Any) -> None:
    found = evaluation_of(shared, carved)

    assert carved.method.contrastive["data"]["eval_split"] == 0.1
    assert found["split"]["source"] == "training_file"
    assert (found["split"]["rows"], found["split"]["queries"], found["split"]["documents"]) == (12, 12, 120)
    assert found["metrics"][0]["name"] == found["metric"] == "mrr"
    assert found["summary"] in messages_of(shared, carved.id)
    assert all(metric["low"] <= metric["difference"] <= metric["high"] for metric in found["metrics"])
    asked = {row["anchor"]: row["positive"] for row in MANY}
    assert all(asked[each["query"]] == each["answer"] for each in found["gained"] + found["lost"])


def test_the_split_is_kept_with_the_model(shared: Installation, carved: Any) -> None:
    model = shared.request("GET", f"/v1/models/{carved.fine_tuned_model}").json()

    assert model["evaluation_split"] == evaluation_of(shared, carved)["split"]["id"]


def test_labelled_texts_have_metrics_of_their_own_and_stop_early_at_the_best(shared: Installation) -> None:
    evaluation = {"every_steps": 1, "keep": "best"}
    job = trained(shared, LABELLED, evaluation=evaluation, early_stopping={"patience": 1, "min_delta": 1.0})

    found = evaluation_of(shared, job)
    assert [metric["name"] for metric in found["metrics"]] == ["map@r", "knn_accuracy", "nmi", "auc"]
    assert found["stopped_early"]
    assert [each["step"] for each in found["history"]] == [0, 1], "no metric rises by more than 1"
    before, after = (each["value"] for each in found["history"])
    assert found["kept_step"] == (1 if after > before else 0)
    assert found["metrics"][0]["tuned"] == pytest.approx(max(before, after)), "the weights of the best are in place"
    assert any(message.startswith("Stopped at step 1 of 6") for message in messages_of(shared, job.id))


def test_a_job_without_rows_to_ask_about_says_so(shared: Installation, pairs_file: str) -> None:
    job = shared.create_job(pairs_file)
    path = f"/v1/fine_tuning/jobs/{job.id}/evaluation"

    early = shared.request("GET", path)
    assert (early.status_code, early.json()["error"]["code"]) == (404, "no_evaluation")
    assert "queued" in early.json()["error"]["message"]
    shared.train(job)
    late = shared.request("GET", path).json()["error"]
    assert "validation_file" in late["message"]


@pytest.mark.parametrize(
    ("contrastive", "named"),
    [
        ({"early_stopping": {}}, "early_stopping"),
        ({"evaluation": {"keep": "best"}}, "keep"),
        ({"evaluation": {"metric": "nmi"}}, "metric"),
    ],
)
def test_what_needs_a_split_is_refused_without_one(
    shared: Installation, pairs_file: str, contrastive: Any, named: str
) -> None:
    method = {"type": "contrastive", "contrastive": contrastive}
    job = shared.openai.fine_tuning.jobs.create(model=TINY, training_file=pairs_file, method=method)

    failed = shared.prepare(job)

    assert (failed.status, failed.error.code) == ("failed", "invalid_value")
    assert named in failed.error.message


def test_two_splits_are_refused(shared: Installation) -> None:
    body = {
        "model": TINY,
        "training_file": shared.upload(PAIRS),
        "validation_file": shared.upload(HELD_OUT),
        "method": {"type": "contrastive", "contrastive": {"data": {"eval_split": 0.2}}},
    }
    answer = shared.request("POST", "/v1/fine_tuning/jobs", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "method.contrastive.data.eval_split"


def test_the_card_tells_the_run(shared: Installation, carved: Any) -> None:
    answer = shared.request("GET", f"/v1/models/{carved.fine_tuned_model}/card")

    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    found = evaluation_of(shared, carved)
    assert found["summary"] in answer.text
    assert found["split"]["id"] in answer.text
    assert carved.training_file in answer.text
    assert "word 7" not in answer.text, "a card travels with the model, rows may be private"


def test_the_download_opens_in_sentence_transformers_and_has_the_pictures(
    shared: Installation, carved: Any, tmp_path: Path
) -> None:
    answer = shared.request("GET", f"/v1/models/{carved.fine_tuned_model.replace('/', '%2F')}/download")

    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    ours = [
        entry.embedding for entry in shared.openai.embeddings.create(model=carved.fine_tuned_model, input=TEXTS).data
    ]
    assert (np.array(ours) * theirs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    for name in ("training.svg", "cosines.svg"):
        assert ET.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("what", ["card", "download"])
def test_models_of_others_and_base_models_have_neither(shared: Installation, carved: Any, what: str) -> None:
    other = shared.as_second_team().request("GET", f"/v1/models/{carved.fine_tuned_model}/{what}")
    base = shared.request("GET", f"/v1/models/{TINY}/{what}")

    assert [each.json()["error"]["code"] for each in (other, base)] == ["model_not_found"] * 2


def test_a_folder_that_was_altered_is_not_sent(shared: Installation) -> None:
    job = trained(shared, PAIRS)
    folder = shared.service.artifacts.model(f"{job.id}-1")
    (folder / "README.md").write_text("altered")

    answer = shared.request("GET", f"/v1/models/{job.fine_tuned_model}/download")

    assert answer.json()["error"]["code"] == "artifact_corrupt"
