"""A search in this process, with a tiny encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from api_schemas.defaults import resolve
from api_schemas.methods import Contrastive, Method
from encoders.text import TextEncoder
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.search_trials import SearchTrials
from tests.encoders.tiny_encoder import write_tiny_encoder
from tests.storage.rows import add_job, events_of
from tests.threads import one_thread
from workers.data.preparation import prepare
from workers.data.row import Row
from workers.evaluation.groups import items_of
from workers.evaluation.pictures import draw_search
from workers.evaluation.split import Split, carved
from workers.search.job_search import Found, JobSearch, SearchFailedError
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import StepReport, TrainingInterrupted

ROWS = [Row("pairs", (f"word {number}", f"said {number} again")) for number in range(120)]
STEPS = 8


class Searched:
    """A job whose `attempt`s each begin with a new encoder."""

    def __init__(self, database: Database, folder: Path, split: Split, base: Path) -> None:
        self.database, self.split, self.base = database, split, base
        self.job_id = add_job(database, "running")
        self.stored = SearchTrials(ArtifactStore(folder), self.job_id)
        self.steps: list[StepReport] = []

    def attempt(self, *, stop_after: int | None = None, seed: int = 0, **hyperparameters: object) -> Found:
        """stop_after: how many steps are told before it is asked to stop."""
        self.steps = []
        search = JobSearch(
            TextEncoder.load(self.base),
            self.split,
            method(**hyperparameters),
            seed=seed,
            recorder=Recorder(self.database, Attempt(self.job_id, 1)),
            stored=self.stored,
            should_stop=lambda: len(self.steps) == stop_after,
            on_step=self.steps.append,
        )
        return search.run()

    def messages(self) -> list[str]:
        return [event.message for event in events_of(self.database, self.job_id) if event.type == "message"]


def method(**hyperparameters: object) -> Contrastive:
    few = {"max_steps": STEPS, "batch_size": 16, "precision": "fp32", "trials": 4, "temperature": "search"}
    asked = Method.model_validate({"contrastive": {"hyperparameters": few | hyperparameters}})
    return resolve(asked, None, rows=len(ROWS), max_seq_length=48).contrastive


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def new_job(database: Database, tmp_path: Path, tiny: Path) -> Callable[[], Searched]:
    data = prepare(iter(ROWS), tmp_path / "data", tokenizer=TextEncoder.load(tiny).tokenizer, limit=48)
    split = carved([data], 0.1, seed=0)
    assert split is not None
    return lambda: Searched(database, tmp_path / "artifacts", split, tiny)


def test_a_search_keeps_the_best_and_says_whether_it_matters(new_job: Callable[[], Searched], tmp_path: Path) -> None:
    job = new_job()
    found = job.attempt(learning_rate=3e-3)

    trials = found.told.trials
    finished = [trial for trial in trials if not trial.pruned]
    assert [trial.number for trial in trials] == [1, 2, 3, 4]
    assert trials[0].choices == {"temperature": 0.05}
    best = max(finished, key=lambda trial: trial.metric or 0)
    assert found.told.chosen == best.number
    assert found.method.loss.temperature == found.config.loss.temperature == best.choices["temperature"]
    assert all(trial.low <= trial.metric <= trial.high for trial in finished), trials  # type: ignore[operator]
    assert found.told.said in job.messages()
    assert f"It took 4 trials, of which {4 - len(finished)} were given up early" in found.told.said
    assert sum(message.startswith("Trial ") for message in job.messages()) == 4

    draw_search(tmp_path / "search.svg", found.told)
    picture = ET.parse(tmp_path / "search.svg").getroot()
    assert any("temperature" in (text.text or "") for text in picture.iter("{http://www.w3.org/2000/svg}text"))


def test_a_search_is_judged_by_what_its_rows_allow_where_the_job_has_another_metric(
    new_job: Callable[[], Searched], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = method()
    asked.evaluation.metric = "spearman"  # of scored pairs, which no training file has
    monkeypatch.setattr(f"{__name__}.method", lambda **_: asked)
    job = new_job()

    assert job.attempt().told.metric == "mrr"
    assert any("compared by MRR on 22 rows" in message for message in job.messages())


def test_no_trial_sees_a_row_of_the_evaluation_nor_trains_on_what_it_is_compared_on(
    new_job: Callable[[], Searched],
) -> None:
    job = new_job()
    found = job.attempt()

    def contents(data: object) -> set[int]:
        return set(data.contents[items_of(data, data.rows)[0]].tolist())  # type: ignore[attr-defined,arg-type]

    evaluation = contents(job.split.evaluation)
    selection = contents(found.training.evaluation)
    trained = contents(found.training.training[0])
    assert not evaluation & selection
    assert not evaluation & trained
    assert not selection & trained
    assert found.told.rows == 22


@pytest.mark.parametrize(("stop_after", "ended"), [(3, 0), (STEPS, 0), (2 * STEPS + 3, 2)])
def test_an_interrupted_search_ends_as_one_that_was_not(
    new_job: Callable[[], Searched], stop_after: int, ended: int
) -> None:
    whole = new_job().attempt()
    job = new_job()

    with pytest.raises(TrainingInterrupted):
        job.attempt(stop_after=stop_after)
    found = job.attempt()

    assert found.told == whole.told
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in found.weights.items())
    assert job.steps[0].step == ended * STEPS + 1, "trials that had ended are not made again"


def test_a_best_trial_whose_weights_are_damaged_is_made_again(new_job: Callable[[], Searched]) -> None:
    job = new_job()
    found = job.attempt()
    before = {name: tensor.clone() for name, tensor in found.weights.items()}
    weights = job.stored.folder("weights", found.told.chosen - 1) / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    again = job.attempt()

    assert again.told == found.told
    assert len(job.steps) == STEPS
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.weights.items())


def test_trials_of_another_search_are_not_taken(new_job: Callable[[], Searched]) -> None:
    job = new_job()
    job.attempt(trials=2)

    found = job.attempt(trials=2, weight_decay=0.5)

    other = new_job()
    fresh = other.attempt(trials=2, weight_decay=0.5)
    assert len(job.steps) == len(other.steps) > STEPS
    assert all(torch.equal(tensor, fresh.weights[name]) for name, tensor in found.weights.items())


def test_a_search_of_which_every_trial_fails_says_why(new_job: Callable[[], Searched]) -> None:
    job = new_job()

    with pytest.raises(SearchFailedError, match="NaN or infinite"):
        job.attempt(trials=2, learning_rate=1e30)

    assert any("failed" in message for message in job.messages())
