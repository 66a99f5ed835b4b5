"""Whole jobs that are evaluated on scored pairs, as a user meets them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.installation import PAIRS, TINY, Installation
from tests.workers.following import messages_of

SCORED = [
    {"sentence1": f"the word {one}", "sentence2": f"{other} said again", "score": 5.0 if one == other else rank / 8}
    for rank, (one, other) in enumerate(zip("uvwxyzuvwxyz", "uvwxyzvwxyzu", strict=True))
]
JUDGED = [
    {"text_a": row["sentence1"], "text_b": row["sentence2"], "is_duplicate": int(row["score"] == 5)} for row in SCORED
]
MANY = [{"anchor": f"word {number}", "positive": f"said {number} again"} for number in range(120)]


def csv(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(",".join(map(str, cells)) for cells in [[*rows[0]], *(row.values() for row in rows)]).encode()


def created(shared: Installation, training: str, validation: str, **contrastive: Any) -> Any:
    asked = {"hyperparameters": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-3}, **contrastive}
    return shared.openai.fine_tuning.jobs.create(
        model=TINY, training_file=training, validation_file=validation, seed=3,
        method={"type": "contrastive", "contrastive": asked},
    )  # fmt: skip


def evaluated(shared: Installation, job: Any) -> tuple[Any, dict[str, Any]]:
    job = shared.train(shared.prepare(job))
    assert job.status == "succeeded", job.error
    answer = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation")
    assert answer.status_code == 200, answer.text
    return job, answer.json()


@pytest.fixture(scope="module")
def scored_file(shared: Installation) -> str:
    return shared.upload(csv(SCORED))


def test_a_job_is_evaluated_by_rank_correlation_on_scored_pairs(
    shared: Installation, pairs_file: str, scored_file: str
) -> None:
    job = created(
        shared, pairs_file, scored_file,
        evaluation={"every_steps": 2, "keep": "best"}, early_stopping={"patience": 3},
        # Both are about the training alone.
        loss={"symmetric": False}, hard_negatives={},
    )  # fmt: skip
    job, found = evaluated(shared, job)

    assert job.method.contrastive["evaluation"]["metric"] == "spearman"
    assert (found["task"], found["metric"]) == ("scored_pairs", "spearman")
    assert [each["name"] for each in found["metrics"]] == ["spearman"]
    assert found["metrics"][0]["low"] <= found["metrics"][0]["difference"] <= found["metrics"][0]["high"]
    assert (found["split"]["source"], found["split"]["file"]) == ("validation_file", scored_file)
    assert (found["split"]["rows"], found["split"]["queries"]) == (12, 12)
    assert found["history"][0] == {"step": 0, "value": found["metrics"][0]["base"]}
    assert found["metrics"][0]["tuned"] == max(each["value"] for each in found["history"])
    asked = {(row["sentence1"], row["sentence2"]): row["score"] for row in SCORED}
    assert found["gained"] + found["lost"]
    for each in found["gained"] + found["lost"]:
        assert asked[each["query"], each["answer"]] == each["score"]
    assert found["cosines"]["divided_at"] == 2.875
    assert sum(found["cosines"]["right_before"]) == 6

    messages = messages_of(shared, job.id)
    assert found["summary"] in messages
    assert found["summary"].startswith("Spearman's rank correlation on rows that were not trained on: ")
    assert not any("Validation loss" in message for message in messages), "unlike pairs have no loss"
    card = shared.request("GET", f"/v1/models/{job.fine_tuned_model}/card").text
    assert found["summary"] in card
    assert "The cosines of 12 pairs were compared with their scores." in card
    assert "said again" not in card


def test_two_scores_are_judged_by_the_auc_and_a_search_by_rows_of_the_training_file(shared: Installation) -> None:
    hyperparameters = {"temperature": "search", "trials": 2, "max_steps": 4, "batch_size": 16}
    training, judged = shared.upload(MANY), shared.upload(JUDGED)
    _, found = evaluated(shared, created(shared, training, judged, hyperparameters=hyperparameters))

    assert found["metric"] == "auc"
    assert [each["name"] for each in found["metrics"]] == ["auc", "spearman"]
    assert found["search"]["metric"] == "mrr"
    assert len(found["search"]["trials"]) == 2


def test_an_upload_says_what_it_is_for(shared: Installation, scored_file: str) -> None:
    file = shared.request("GET", f"/v1/files/{scored_file}").json()
    assert (file["status"], file["format"], file["rows"], file["error_count"]) == ("processed", "scored_pairs", 12, 0)
    assert "validation_file" in file["status_details"]
    report = shared.request("GET", f"/v1/files/{scored_file}/report").json()
    assert report["scores"] == {"smallest": 0.75, "median": 3.1875, "largest": 5.0, "binary": False}


def test_training_on_scored_pairs_is_refused_at_once(shared: Installation, pairs_file: str, scored_file: str) -> None:
    data = {"additional_training_files": [scored_file]}
    for training, more, param in (
        (scored_file, {}, "training_file"),
        (pairs_file, {"data": data}, "method.contrastive.data.additional_training_files.0"),
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            created(shared, training, shared.upload(JUDGED), **more)
        assert (refusal.value.code, refusal.value.param) == ("pairs_with_score", param)
        assert "keep the pairs that are alike" in refusal.value.message


def test_a_job_may_tell_what_the_score_of_its_validation_file_is_called(shared: Installation) -> None:
    rows = [{"one": row["sentence1"], "other": row["sentence2"], "label": row["score"]} for row in SCORED]
    alike = shared.upload([{"one": row["anchor"], "other": row["positive"]} for row in PAIRS])
    scored = shared.upload(rows)
    data = {"columns": {"anchor": "one", "positive": "other", "score": "label"}}

    queued = shared.prepare(created(shared, alike, scored, data=data))
    failed = shared.prepare(created(shared, scored, shared.upload(rows[4:]), data=data))

    assert queued.method.contrastive["evaluation"]["metric"] == "spearman"
    assert (failed.status, failed.error.code) == ("failed", "pairs_with_score")
    assert scored in failed.error.message


def test_pairs_that_are_said_to_be_alike_are_trained_on_whatever_their_scores(
    shared: Installation, scored_file: str
) -> None:
    method = {"type": "contrastive", "contrastive": {"data": {"format": "pairs"}, "hyperparameters": {"batch_size": 8}}}
    job = shared.openai.fine_tuning.jobs.create(model=TINY, training_file=scored_file, method=method)
    assert shared.prepare(job).status == "queued"


@pytest.mark.parametrize(
    ("evaluation", "model", "words"),
    [({"metric": "mrr"}, TINY, "one of: spearman"), ({}, "adapter", "The file holds texts, and adapter reads vectors")],
)
def test_what_does_not_go_with_scored_pairs_is_refused(
    shared: Installation, scored_file: str, pairs_file: str, evaluation: Any, model: str, words: str
) -> None:
    vectors = [{"vector": [number, 1.0, 2.0], "label": number % 4} for number in range(20)]
    training = pairs_file if model == TINY else shared.upload(vectors)
    body = {
        "model": model, "training_file": training, "validation_file": scored_file,
        "method": {"type": "contrastive", "contrastive": {"evaluation": evaluation}},
    }  # fmt: skip
    answer = shared.request("POST", "/v1/fine_tuning/jobs", json=body).json()
    if "error" in answer and "id" not in answer:
        assert words in answer["error"]["message"]
        return
    failed = shared.prepare(shared.openai.fine_tuning.jobs.retrieve(answer["id"]))
    assert (failed.status, failed.error.code) == ("failed", "invalid_value")
    assert words in failed.error.message


def test_scored_pairs_made_of_training_rows_are_refused(shared: Installation, pairs_file: str) -> None:
    known = [{**row, "score": number} for number, row in enumerate(PAIRS[:8])]
    job = shared.prepare(created(shared, pairs_file, shared.upload(known)))
    assert (job.status, job.error.code) == ("failed", "evaluation_in_training")


def test_the_format_of_a_job_can_not_be_scored_pairs(shared: Installation, pairs_file: str) -> None:
    answer = shared.request(
        "POST", "/v1/fine_tuning/jobs",
        json={"model": TINY, "training_file": pairs_file,
              "method": {"type": "contrastive", "contrastive": {"data": {"format": "scored_pairs"}}}},
    )  # fmt: skip
    assert (answer.status_code, json.loads(answer.text)["error"]["code"]) == (400, "invalid_value")
