"""Whole jobs that search, as a user meets them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.installation import HELD_OUT, TINY, Installation
from tests.workers.following import messages_of

MANY = [{"anchor": f"word {number}", "positive": f"said {number} again"} for number in range(120)]
FEW = MANY[:60]
LABELLED = [{"text": f"the word {word} and {number}", "label": word} for word in "abcde" for number in range(24)]
SEARCH = {"temperature": "search", "trials": 2}


def created(shared: Installation, rows: Any, hyperparameters: Any, held_out: Any = None, **contrastive: Any) -> Any:
    method = {"type": "contrastive", "contrastive": {"hyperparameters": hyperparameters, **contrastive}}
    others = {} if held_out is None else {"validation_file": shared.upload(held_out)}
    return shared.openai.fine_tuning.jobs.create(
        model=TINY, training_file=shared.upload(rows), method=method, seed=3, **others
    )


def test_a_job_searches_and_tells_what_it_found(shared: Installation) -> None:
    asked = {"temperature": "search", "loss": "search", "trials": 4, "max_steps": 4, "batch_size": 16}
    job = created(shared, LABELLED, asked)
    prepared = shared.prepare(job)
    assert prepared.method.contrastive["loss"]["temperature"] == "search"

    job = shared.train(prepared)

    assert job.status == "succeeded", job.error
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation").json()
    search = found["search"]
    chosen = search["trials"][search["chosen"] - 1]
    assert len(search["trials"]) == 4
    assert {trial["choices"]["loss"] for trial in search["trials"][:2]} == {"ntxent", "supcon"}
    assert search["said"] in messages_of(shared, job.id)
    loss = job.method.contrastive["loss"]
    assert {"temperature": loss["temperature"], "loss": loss["name"]} == chosen["choices"]
    assert loss["reduction"] == {"ntxent": "pair", "supcon": "anchor"}[loss["name"]]
    assert "auto" not in job.method.contrastive["hyperparameters"].values()
    assert found["kept_step"] == chosen["steps"]
    assert found["split"]["rows"] + search["rows"] < len(LABELLED)
    card = shared.request("GET", f"/v1/models/{job.fine_tuned_model}/card").text
    assert "(search.svg)" in card
    assert search["said"] in card
    answer = shared.openai.embeddings.create(model=job.fine_tuned_model, input=["a word"])
    assert len(answer.data[0].embedding) == 32, "the folder with its picture is served"


@pytest.mark.parametrize(
    ("rows", "hyperparameters", "contrastive", "named"),
    [
        (MANY, {"trials": 5}, {}, "hyperparameters.trials"),
        (MANY, SEARCH, {"data": {"eval_split": 0.0}}, "validation_file"),
        (FEW, SEARCH, {"data": {"eval_split": 0.2}}, "at least 100 rows"),
        ([{"text": row["positive"]} for row in MANY], SEARCH, {}, "loss.temperature"),
        (MANY, SEARCH, {"early_stopping": {}}, "early_stopping"),
    ],
    ids=["nothing to search", "no split", "few rows", "plain texts", "early stopping"],
)
def test_what_can_not_be_searched_is_refused(
    shared: Installation, rows: Any, hyperparameters: Any, contrastive: Any, named: str
) -> None:
    failed = shared.prepare(created(shared, rows, hyperparameters, **contrastive))

    assert (failed.status, failed.error.code) == ("failed", "invalid_value")
    assert named in failed.error.message


def test_of_pairs_only_ntxent_is_tried(shared: Installation) -> None:
    prepared = shared.prepare(created(shared, MANY, {"loss": "search", "trials": 2}, held_out=HELD_OUT))

    assert prepared.status == "queued"
    assert (
        prepared.method.contrastive["loss"] | {"name": "ntxent", "reduction": "pair"}
        == (prepared.method.contrastive["loss"])
    )
    assert prepared.method.contrastive["hyperparameters"]["trials"] is None
    assert any("only ntxent is tried" in message for message in messages_of(shared, prepared.id))
