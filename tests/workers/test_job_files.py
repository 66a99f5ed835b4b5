"""Jobs on several files: mixed ones, and a corpus with queries and relevance judgements."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.installation import HELD_OUT, PAIRS, TINY, Installation
from tests.markdown import ROOT, code_blocks
from tests.workers.following import messages_of

LABELLED = [{"text": f"the number {number} of {word}", "label": word} for word in "abcde" for number in range(8)]
VECTORS = [{"vector": [number, 1.0, 2.0], "label": number % 4} for number in range(20)]
CORPUS = [
    *({"_id": f"d{n}", "title": "Page", "text": row["positive"]} for n, row in enumerate([*PAIRS, *HELD_OUT])),
    {"_id": "blank", "title": "", "text": ""},
]
QUERIES = [{"_id": f"q{n}", "text": row["anchor"]} for n, row in enumerate([*PAIRS, *HELD_OUT])]


def qrels(numbers: range, *more: str, delimiter: str = "\t") -> bytes:
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers), *more]
    return "".join(row.replace("\t", delimiter) + "\n" for row in rows).encode()


def upload(shared: Installation, name: str, content: bytes, *, validated: bool = True) -> str:
    file_id = shared.openai.files.create(file=(name, content), purpose="fine-tune").id
    if validated:
        shared.validate(file_id)
    return file_id


def lines(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def create(shared: Installation, training_file: str, data: dict[str, Any], **arguments: Any) -> Any:
    """A job that isn't prepared yet."""
    hyperparameters = {"max_steps": 5, "batch_size": 8, **arguments.pop("hyperparameters", {})}
    contrastive = {"data": data, "hyperparameters": hyperparameters, "loss": arguments.pop("loss", {})}
    method = {"type": "contrastive", "contrastive": contrastive}
    return shared.openai.fine_tuning.jobs.create(model=TINY, training_file=training_file, method=method, **arguments)


def data_of(job: Any) -> dict[str, Any]:
    return job.method.to_dict()["contrastive"]["data"]


@pytest.fixture(scope="module")
def texts(shared: Installation) -> dict[str, str]:
    """A corpus and queries, as a job's `data` names them."""
    return {
        "corpus": upload(shared, "corpus.jsonl", lines(CORPUS)),
        "queries": upload(shared, "queries.jsonl", lines(QUERIES)),
    }


@pytest.fixture(scope="module")
def judged(shared: Installation) -> str:
    return upload(shared, "train.tsv", qrels(range(20)))


@pytest.fixture(scope="module")
def labelled_file(shared: Installation) -> str:
    return upload(shared, "labels.jsonl", lines(LABELLED))


def test_what_the_page_on_data_shows_works(
    shared: Installation, pairs_file: str, labelled_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{shared.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", shared.key)
    page = ROOT / "docs" / "data.md"
    files, look = code_blocks(page, "sh")
    mixed, triple, *_ = code_blocks(page, "python")

    subprocess.run(["bash", "-euc", files], check=True)
    command = [sys.executable, "-m", "service", *shlex.split(look)[1:], "--no-probe"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train.tsv  2 rows of pairs" in done.stdout

    names: dict[str, Any] = {}
    exec(triple, names)
    names["client"].close()
    for file in shared.openai.files.list(limit=4):
        shared.validate(file.id)
    job = shared.prepare(names["job"])
    assert job.status == "queued", job.error

    file_of = shared.openai.files.retrieve
    names |= {
        "pairs": file_of(pairs_file),
        "labels": file_of(labelled_file),
        "titles": file_of(shared.upload(HELD_OUT)),
    }
    names["client"] = shared.openai
    exec(mixed, names)
    assert shared.prepare(names["job"]).status == "queued"


# --- several files ---


def test_two_files_of_different_formats_are_mixed_and_each_ones_share_is_told(
    shared: Installation, pairs_file: str, labelled_file: str
) -> None:
    data = {"additional_training_files": [labelled_file], "mixing_temperature": 2.0, "bucket_by_length": True}
    asked = create(shared, pairs_file, data, validation_file=shared.upload(HELD_OUT), hyperparameters={"max_steps": 12})
    assert {name: data_of(asked)[name] for name in data} == data

    job = shared.train(shared.prepare(asked))

    assert job.status == "succeeded", job.error
    messages = messages_of(shared, job.id)
    # √20 : √40 of 12 steps.
    said = "Of 12 steps, training file 1 (rows.jsonl) has 5, 42 %; training file 2 (labels.jsonl) has 7, 58 %"
    assert said in messages
    assert f"Job created to fine-tune {TINY} on rows.jsonl and 1 more" in messages
    assert [message for message in messages if message.startswith("Read ")] == [
        "Read 20 rows with 40 different texts",
        "Read 40 rows with 40 different texts",
        "Read 6 rows with 12 different texts",
    ]
    card = shared.request("GET", f"/v1/models/{job.fine_tuned_model}/card").text
    assert f"| training | `{pairs_file}` | 20 |" in card
    assert f"| training | `{labelled_file}` | 40 |" in card


def test_texts_that_are_held_out_of_one_file_are_left_out_of_the_others(shared: Installation) -> None:
    rows = [{"anchor": f"word {number}", "positive": f"said {number} again"} for number in range(120)]
    others = [{"anchor": row["positive"], "positive": f"{row['anchor']} once more"} for row in rows]
    job = create(shared, shared.upload(rows), {"additional_training_files": [shared.upload(others)]})
    job = shared.prepare(job)

    assert data_of(job)["eval_split"] == 0.1
    messages = messages_of(shared, job.id)
    assert any(message.startswith("12 of 120 rows are held out") for message in messages)
    assert "12 rows of the additional training files hold a text of these, and are left out" in messages


def test_what_is_automatic_is_chosen_for_the_rows_of_all_files(
    shared: Installation, pairs_file: str, labelled_file: str
) -> None:
    automatic = {"batch_size": "auto", "max_steps": None}
    alone, mixed = (
        shared.prepare(create(shared, pairs_file, data, hyperparameters=automatic))
        for data in ({}, {"additional_training_files": [labelled_file]})
    )
    assert [job.hyperparameters.batch_size for job in (alone, mixed)] == [5, 15]
    assert data_of(mixed)["bucket_by_length"] is False


def test_a_job_waits_for_its_further_files(shared: Installation, pairs_file: str) -> None:
    late = upload(shared, "late.jsonl", lines(LABELLED), validated=False)
    job = shared.prepare(create(shared, pairs_file, {"additional_training_files": [late]}))
    assert job.status == "validating_files"
    assert shared.request("DELETE", f"/v1/files/{late}").json()["error"]["code"] == "file_in_use"
    shared.validate(late)
    assert shared.prepare(job).status == "queued"


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        pytest.param(b'{"anchor": "a"}\n', "file_invalid", "late.jsonl: 1 of 1 rows", id="unusable"),
        pytest.param(lines(VECTORS), "invalid_value", "holds vectors, and tiny/bert reads texts", id="vectors"),
        pytest.param(qrels(range(5)), "relevance_without_texts", "data.corpus", id="relevance"),
    ],
)
def test_a_job_whose_further_file_turns_out_to_be_of_no_use_fails_unprepared(
    shared: Installation, pairs_file: str, content: bytes, code: str, words: str
) -> None:
    late = upload(shared, "late.jsonl", content, validated=False)
    job = create(shared, pairs_file, {"additional_training_files": [late]})
    shared.validate(late)
    job = shared.openai.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error.code) == ("failed", code)
    assert words in job.error.message


@pytest.mark.parametrize(
    ("further", "place", "code", "words"),
    [
        pytest.param("itself", ".0", "invalid_value", "the training file itself", id="the training file"),
        pytest.param("held out", ".0", "evaluation_in_training", "is the validation file", id="the validation file"),
        pytest.param("twice", "", "invalid_value", "must name each file once", id="one twice"),
        pytest.param("unknown", ".0", "not_found", "no file 'file-unknown'", id="unknown"),
        pytest.param("another team's", ".0", "not_found", "There is no file", id="another team's"),
        pytest.param("bad", ".0", "file_invalid", "can't be used", id="unusable"),
        pytest.param("vectors", ".1", "invalid_value", "Train an adapter on it", id="vectors with texts"),
        pytest.param("sixteen", "", "out_of_range", "at most 15", id="too many"),
        pytest.param("judged", ".0", "relevance_without_texts", "data.corpus and data.queries", id="relevance file"),
        pytest.param("one label", ".0", "too_few_classes", "hold a second label", id="one label, nearly"),
    ],
)
def test_files_that_cannot_be_mixed_are_refused_by_field_and_remedy(
    shared: Installation, pairs_file: str, labelled_file: str, judged: str,
    further: str, place: str, code: str, words: str,
) -> None:  # fmt: skip
    held_out = shared.upload(HELD_OUT)
    rare = [{"text": f"text {n}", "label": "spam" if n < 2 else "ham"} for n in range(100)]
    named = {
        "itself": lambda: [pairs_file],
        "held out": lambda: [held_out],
        "twice": lambda: [labelled_file, labelled_file],
        "unknown": lambda: ["file-unknown"],
        "another team's": lambda: [shared.as_second_team().upload(PAIRS, validated=False)],
        "bad": lambda: [shared.upload([{"anchor": "a"}])],
        "vectors": lambda: [labelled_file, shared.upload(VECTORS)],
        "sixteen": lambda: [f"file-{n}" for n in range(16)],
        "judged": lambda: [judged],
        "one label": lambda: [shared.upload(rare)],
    }[further]()
    with pytest.raises(openai.APIStatusError) as refusal:
        create(shared, pairs_file, {"additional_training_files": named}, validation_file=held_out)
    param = f"method.contrastive.data.additional_training_files{place}"
    assert (refusal.value.code, refusal.value.param) == (code, param)
    assert words in refusal.value.message


@pytest.mark.parametrize("value", [0, -1, "hot"])
def test_a_mixing_temperature_is_above_zero(shared: Installation, pairs_file: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(shared, pairs_file, {"mixing_temperature": value})
    assert refusal.value.param == "method.contrastive.data.mixing_temperature"


def test_validation_rows_in_any_training_file_are_found(shared: Installation, pairs_file: str) -> None:
    job = create(
        shared,
        pairs_file,
        {"additional_training_files": [shared.upload([*HELD_OUT, {"anchor": "x", "positive": "y"}])]},
        validation_file=shared.upload([*HELD_OUT[:4], PAIRS[0], {"anchor": "new", "positive": "newer"}]),
    )
    job = shared.prepare(job)
    assert (job.status, job.error.code) == ("failed", "evaluation_in_training")
    assert "5 of the validation file's 6 rows stand in the training files" in job.error.message


def test_a_direction_is_asked_of_every_file(shared: Installation, pairs_file: str, labelled_file: str) -> None:
    job = create(shared, pairs_file, {"additional_training_files": [labelled_file]}, loss={"symmetric": False})
    job = shared.prepare(job)
    assert (job.status, job.error.code) == ("failed", "invalid_value")
    assert "Leave it out" in job.error.message


# --- a corpus, queries and judgements ---


def test_a_beir_triple_trains_and_is_validated_on_other_judgements(
    shared: Installation, texts: dict[str, str], judged: str
) -> None:
    # One text of the corpus is empty, which no plain text may be, and no judgement names it.
    assert shared.openai.files.retrieve(texts["corpus"]).status == "error"
    assert shared.openai.files.retrieve(texts["queries"]).status == "processed"
    held_out = upload(shared, "test.csv", qrels(range(20, 26), delimiter=","))

    asked = create(shared, judged, texts, validation_file=held_out)
    assert {name: data_of(asked)[name] for name in texts} == texts
    for file_id in (*texts.values(), judged, held_out):
        assert shared.request("DELETE", f"/v1/files/{file_id}").json()["error"]["code"] == "file_in_use"
    job = shared.train(shared.prepare(asked))

    assert job.status == "succeeded", job.error
    messages = messages_of(shared, job.id)
    assert "Read 20 rows with 40 different texts" in messages
    assert "Read 6 rows with 12 different texts" in messages
    assert any(message.startswith("Validation loss: ") for message in messages)
    found = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/evaluation").json()
    assert (found["split"]["file"], found["split"]["queries"], found["split"]["documents"]) == (held_out, 6, 26)
    answers = {row["anchor"]: f"Page {row['positive']}" for row in HELD_OUT}
    assert all(answers[each["query"]] == each["answer"] for each in found["gained"] + found["lost"])
    card = shared.request("GET", f"/v1/models/{job.fine_tuned_model}/card").text
    assert [line.split(" | ")[0] for line in card.splitlines() if "`file-" in line] == [
        "| training", "| evaluation", "| corpus", "| queries"
    ]  # fmt: skip


def test_judgements_are_mixed_as_rows_are(shared: Installation, texts: dict[str, str], judged: str) -> None:
    more = upload(shared, "more.jsonl", lines([{"query-id": "q20", "corpus-id": f"d{n}", "score": 1} for n in (20, 21)]
                  + [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 2} for n in (22, 23)]))  # fmt: skip
    job = shared.prepare(create(shared, judged, {**texts, "additional_training_files": [more]}))
    assert job.status == "queued", job.error


def test_another_corpus_makes_other_rows_of_the_same_judgements(
    shared: Installation, texts: dict[str, str], judged: str
) -> None:
    kept = shared.settings.derived_dir
    shared.prepare(create(shared, judged, texts))
    before = set(kept.iterdir())
    shared.prepare(create(shared, judged, {**texts, "mixing_temperature": 3.0, "bucket_by_length": True}))
    assert set(kept.iterdir()) == before
    other = upload(shared, "corpus.jsonl", lines([{**row, "text": f"{row['text']} indeed"} for row in CORPUS]))
    job = shared.prepare(create(shared, judged, {**texts, "corpus": other}))
    assert job.status == "queued", job.error
    assert len(set(kept.iterdir()) - before) == 1


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels.csv", "qrels.jsonl"])
def test_a_relevance_file_is_recognised_when_it_is_uploaded(shared: Installation, name: str) -> None:
    content = {
        "qrels.tsv": qrels(range(3), "q1\td2\t0"),
        "qrels.csv": qrels(range(3), "q1\td2\t0", delimiter=","),
        "qrels.jsonl": lines([{"score": n, "query-id": "q1", "corpus-id": f"d{n}"} for n in range(4)]),
    }[name]
    file_id = upload(shared, name, content)
    file = shared.openai.files.retrieve(file_id).to_dict()
    assert (file["status"], file["format"], file["rows"], file["error_count"]) == ("processed", "relevance", 4, 0)
    assert "data.corpus and data.queries" in file["status_details"]
    report = shared.request("GET", f"/v1/files/{file_id}/report").json()
    assert (report["format"], report["rows"], report["verdict"]["usable"]) == ("relevance", 4, False)
    assert [reason["code"] for reason in report["verdict"]["reasons"]] == ["relevance_without_texts"]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (qrels(range(3), "q1\td2\thigh"), "row_invalid_type", "Row 5: 'score' must be a number, not 'high'."),
        (qrels(range(3), "q1\t \t1"), "row_empty_text", "Row 5: 'corpus-id' is empty."),
        (qrels(range(0)), "empty_file", "holds no judgements"),
    ],
)
def test_a_broken_relevance_file_is_told_by_row(shared: Installation, content: bytes, code: str, words: str) -> None:
    file = shared.openai.files.retrieve(upload(shared, "qrels.tsv", content)).to_dict()
    assert (file["status"], file["errors"][0]["code"]) == ("error", code)
    assert words in file["errors"][0]["message"]


@pytest.mark.parametrize(
    ("names", "param", "code", "words"),
    [
        pytest.param(set(), "", "relevance_without_texts", "Say in data.corpus", id="neither"),
        pytest.param({"corpus"}, "queries", "invalid_value", "both or neither", id="no queries"),
        pytest.param({"queries"}, "queries", "invalid_value", "both or neither", id="no corpus"),
        pytest.param({"corpus", "queries", "columns"}, "queries", "invalid_value",
                     "without format and columns", id="columns"),
        pytest.param({"unknown", "queries"}, "corpus", "not_found", "There is no file",
                     id="an unknown corpus"),
    ],
)  # fmt: skip
def test_half_a_triple_is_refused_at_once(
    shared: Installation, texts: dict[str, str], judged: str, names: set[str], param: str, code: str, words: str
) -> None:
    more: dict[str, Any] = {"columns": {"anchor": "a"}} if "columns" in names else {}
    more |= {"corpus": "file-unknown"} if "unknown" in names else {}
    data = {name: file_id for name, file_id in texts.items() if name in names} | more
    with pytest.raises(openai.APIStatusError) as refusal:
        create(shared, judged, data)
    assert (refusal.value.code, refusal.value.param) == (
        code,
        f"method.contrastive.data.{param}" if param else "training_file",
    )
    assert words in refusal.value.message


def test_judgements_to_validate_rows_on_are_refused(shared: Installation, pairs_file: str, judged: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(shared, pairs_file, {}, validation_file=judged)
    assert (refusal.value.code, refusal.value.param) == ("relevance_without_texts", "validation_file")


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_rows_in_the_place_of_judgements_are_refused(
    shared: Installation, texts: dict[str, str], judged: str, pairs_file: str, param: str
) -> None:
    places = {"training_file": judged, param: pairs_file}
    with pytest.raises(openai.BadRequestError) as refusal:
        create(shared, places["training_file"], texts, validation_file=places.get("validation_file"))
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", param)
    assert "rows.jsonl holds pairs" in refusal.value.message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"corpus": CORPUS[1:]}, "names the document 'd0', which is not there", id="a text is missing"),
        pytest.param({"queries": [*QUERIES, QUERIES[0]]}, "(queries) has the id 'q0'", id="an id twice"),
        pytest.param({"corpus": PAIRS}, "(corpus) has no '_id'", id="no corpus"),
    ],
)
def test_a_triple_that_does_not_fit_fails_before_it_is_queued(
    shared: Installation, texts: dict[str, str], judged: str, changed: dict[str, Any], words: str
) -> None:
    [(name, rows)] = changed.items()
    job = shared.prepare(create(shared, judged, {**texts, name: upload(shared, f"{name}.jsonl", lines(rows))}))
    assert (job.status, job.attempt, job.error.code) == ("failed", 0, "file_invalid")
    assert words in job.error.message


def test_judgements_that_are_trained_on_are_no_validation(
    shared: Installation, texts: dict[str, str], judged: str
) -> None:
    job = shared.prepare(create(shared, judged, texts, validation_file=upload(shared, "test.tsv", qrels(range(4)))))
    assert (job.status, job.error.code) == ("failed", "evaluation_in_training")
