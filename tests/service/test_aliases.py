"""/v1/aliases: names of a team's own that requests take in place of a model's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.installation import TINY, Installation


@pytest.fixture
def model(shared: Installation, pairs_file: str) -> str:
    """A tuned model."""
    return shared.publish(shared.create_job(pairs_file))


def put(installation: Installation, name: str, model: Any) -> Any:
    return installation.request("PUT", f"/v1/aliases/{name}", json={"model": model})


def refusal(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def embed(installation: Installation, model: str) -> Any:
    return installation.request("POST", "/v1/embeddings", json={"model": model, "input": "a"})


def test_an_alias_is_made_shown_listed_and_deleted(shared: Installation) -> None:
    made = put(shared, "made", TINY)

    assert made.status_code == 200
    assert made.json() == put(shared, "made", TINY).json()
    assert (made.json()["name"], made.json()["object"], made.json()["model"]) == ("made", "alias", TINY)
    assert shared.request("GET", "/v1/aliases/made").json() == made.json()
    assert made.json() in shared.request("GET", "/v1/aliases").json()["data"]
    gone = shared.request("DELETE", "/v1/aliases/made")
    assert gone.json() == {"id": "made", "object": "alias", "deleted": True}
    for method in ("GET", "DELETE"):
        assert refusal(shared.request(method, "/v1/aliases/made")) == (404, "not_found", None)


def test_the_openai_client_makes_one_as_the_readme_says(shared: Installation) -> None:
    made = shared.openai.put("/aliases/search", body={"model": TINY}, cast_to=object)
    assert made == shared.request("GET", "/v1/aliases/search").json()
    shared.request("DELETE", "/v1/aliases/search")


def test_aliases_are_listed_a_page_at_a_time(shared: Installation) -> None:
    for name in ("page.b", "page.c", "page.a"):
        put(shared, name, TINY)

    first = shared.request("GET", "/v1/aliases?after=page&limit=2").json()
    second = shared.request("GET", f"/v1/aliases?limit=1&after={first['last_id']}").json()

    assert [alias["name"] for alias in first["data"] + second["data"]] == ["page.a", "page.b", "page.c"]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("page.a", "page.b", True)


@pytest.mark.parametrize("name", ["ft:a", ".hidden", "-rf", "a b", "ä", "a" * 65, "scratch", "adapter"])
def test_a_name_that_is_none_for_an_alias_is_refused(shared: Installation, name: str) -> None:
    assert refusal(put(shared, name, TINY)) == (400, "invalid_value", "name")


@pytest.mark.parametrize("name", ["a", "7", "Search-2.1_b", "a" * 64])
def test_a_plain_name_is_taken(shared: Installation, name: str) -> None:
    assert put(shared, name, TINY).json()["name"] == name


def test_an_alias_stands_for_a_model_that_there_is(shared: Installation, model: str) -> None:
    stranger = shared.as_second_team()
    put(shared, "other", TINY)
    assert refusal(put(shared, "search", "no/such")) == (404, "model_not_found", "model")
    assert refusal(put(stranger, "search", model)) == (404, "model_not_found", "model")
    assert refusal(put(shared, "search", "other")) == (400, "invalid_value", "model")
    assert refusal(put(shared, "search", 7)) == (400, "invalid_type", "model")
    assert shared.request("GET", "/v1/aliases/search").status_code == 404


def test_embeddings_and_similarity_say_which_model_answered_to_an_alias(shared: Installation, model: str) -> None:
    put(shared, "serving", TINY)
    body = {"model": "serving", "pairs": [["a", "b"]]}
    for answer in (embed(shared, "serving"), shared.request("POST", "/v1/similarity", json=body)):
        assert (answer.json()["model"], answer.json()["model_version"]) == ("serving", TINY)
    assert embed(shared, TINY).json()["model_version"] == TINY

    put(shared, "serving", model)

    answer = embed(shared, "serving").json()
    assert (answer["model"], answer["model_version"]) == ("serving", model)
    assert answer["data"] == embed(shared, model).json()["data"]


def test_an_alias_that_is_deleted_is_no_model(shared: Installation) -> None:
    put(shared, "brief", TINY)
    assert embed(shared, "brief").status_code == 200
    shared.request("DELETE", "/v1/aliases/brief")
    assert refusal(embed(shared, "brief")) == (404, "model_not_found", "model")


def test_an_alias_is_no_model_of_the_list(shared: Installation, model: str) -> None:
    put(shared, "no-model", model)
    for path in ("", "/card", "/download"):
        assert refusal(shared.request("GET", f"/v1/models/no-model{path}")) == (404, "model_not_found", "model")
    assert refusal(shared.request("DELETE", "/v1/models/no-model")) == (404, "model_not_found", "model")


def test_a_job_trains_the_model_that_the_alias_stood_for(shared: Installation, pairs_file: str, model: str) -> None:
    put(shared, "start", model)
    job = shared.create_job(pairs_file, model="start")
    put(shared, "start", TINY)

    assert job.model == model
    assert shared.openai.fine_tuning.jobs.retrieve(job.id).model == model
    assert refusal(shared.request("DELETE", f"/v1/models/{model}"))[1] == "model_in_use"
    shared.openai.fine_tuning.jobs.cancel(job.id)


def test_a_model_with_an_alias_is_not_deleted(shared: Installation, model: str) -> None:
    put(shared, "keeps", model)
    answer = shared.request("DELETE", f"/v1/models/{model}")
    assert refusal(answer) == (409, "model_in_use", "model")
    assert "keeps" in answer.json()["error"]["message"]
    put(shared, "keeps", TINY)
    assert shared.request("DELETE", f"/v1/models/{model}").status_code == 200
    assert refusal(embed(shared, model)) == (404, "model_not_found", "model")


def test_another_teams_alias_is_nobodys(shared: Installation) -> None:
    put(shared, "theirs", TINY)
    stranger = shared.as_second_team()
    assert refusal(embed(stranger, "theirs")) == (404, "model_not_found", "model")
    for method in ("GET", "DELETE"):
        assert refusal(stranger.request(method, "/v1/aliases/theirs"))[:2] == (404, "not_found")
    assert stranger.request("GET", "/v1/aliases").json()["data"] == []
    assert put(stranger, "theirs", TINY).status_code == 200
