from __future__ import annotations

import pytest

from api_schemas.defaults import SCRATCH_LEARNING_RATE, TEMPERATURE, resolve
from api_schemas.methods import Contrastive, Method
from workers.search.space import Space, temperatures, with_choices
from workers.training.config import TrainingConfig


def asked(**hyperparameters: object) -> Contrastive:
    """A resolved method of a job with 1000 rows, all other things as they are by default."""
    method = Method.model_validate({"contrastive": {"hyperparameters": hyperparameters}})
    return resolve(method, None, rows=1000, max_seq_length=48).contrastive


@pytest.mark.parametrize("count", [1, 2, 3, 6, 25])
def test_the_points_of_the_curve_are_spread_evenly_and_hold_the_default(count: int) -> None:
    points = temperatures(count)

    assert TEMPERATURE in points
    assert points == sorted(set(points))
    if count > 2:
        assert (points[0], points[-1]) == (0.01, 0.5)


def test_half_of_the_trials_are_a_curve_that_begins_with_the_default() -> None:
    planned = Space.of(asked(temperature="search", learning_rate="search", trials=12), rows=1000).planned()

    assert planned[0] == {"temperature": 0.05, "learning_rate": 5e-5}
    assert len(planned) == 6
    assert {choices["learning_rate"] for choices in planned} == {5e-5}, "they differ in the temperature alone"


def test_from_scratch_the_learning_rate_is_looked_for_around_a_higher_one() -> None:
    options = {"model": {"scratch": {}}, "hyperparameters": {"learning_rate": "search"}}
    method = resolve(Method.model_validate({"contrastive": options}), None, rows=1000, max_seq_length=48)

    assert Space.of(method.contrastive, rows=1000).defaults == {"learning_rate": SCRATCH_LEARNING_RATE}


def test_each_loss_has_a_curve() -> None:
    planned = Space.of(asked(temperature="search", loss="search", trials=12), rows=1000).planned()

    assert [choices["loss"] for choices in planned].count("supcon") == 3
    assert {choices["temperature"] for choices in planned if choices["loss"] == "ntxent"} == set(temperatures(3))


def test_of_a_few_alternatives_each_is_tried_once() -> None:
    space = Space.of(asked(batch_size="search", loss="search"), rows=200)

    assert space.batch_sizes == (16, 32, 50)
    assert space.trials == len(space.planned()) == 6
    assert space.planned()[0] == {"loss": "ntxent", "batch_size": 50}


@pytest.mark.parametrize(("loss", "reduction"), [("ntxent", "pair"), ("supcon", "anchor")])
def test_a_trial_has_the_reduction_of_its_loss(loss: str, reduction: str) -> None:
    chosen = with_choices(asked(loss="search", temperature="search", trials=4), {"loss": loss, "temperature": 0.2})
    config = TrainingConfig.from_method(chosen, seed=0)

    assert (config.loss.name, config.loss.reduction, config.loss.temperature) == (loss, reduction, 0.2)


def test_the_short_form_is_the_long_one() -> None:
    long = {"loss": {"temperature": "search", "name": "search"}, "hyperparameters": {"trials": 3}}
    short = {"hyperparameters": {"temperature": "search", "loss": "search", "trials": 3}}

    assert Contrastive.model_validate(short) == Contrastive.model_validate(long)


def test_a_value_and_a_search_for_it_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss\.temperature"):
        Contrastive.model_validate({"loss": {"temperature": 0.1}, "hyperparameters": {"temperature": "search"}})
