"""Mined negatives in a run: when they are mined, what is said of them, and that they survive an interruption."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from workers.training.mining import MiningConfig
from workers.training.trainer import Notice, StepReport, Trainer, TrainingInterrupted


@pytest.fixture
def mining_config(config):
    return replace(config, n_epochs=4, hard_negatives=MiningConfig(margin=1.0, every_epochs=2))


def test_they_are_mined_before_every_so_many_epochs_and_told(encoder, data, mining_config) -> None:
    told: list[Notice] = []
    Trainer(encoder, [data], mining_config, on_notice=told.append).run(
        on_step=lambda _: None, should_stop=lambda: False
    )
    mined = [notice.message for notice in told if notice.message.startswith("Mined hard negatives for")]
    assert len(mined) == 2
    assert "is answered by" in mined[0].splitlines()[1]


def test_they_change_what_is_learned(encoder, data, mining_config) -> None:
    plain, mined = copy.deepcopy(encoder), copy.deepcopy(encoder)
    for each, config in ((plain, replace(mining_config, hard_negatives=None)), (mined, mining_config)):
        Trainer(each, [data], config).run(on_step=lambda _: None, should_stop=lambda: False)
    assert not _same(plain.state_dict(), mined.state_dict())


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_an_interrupted_run_ends_at_the_same_bytes(encoder, data, mining_config, stop_at) -> None:
    whole, interrupted = copy.deepcopy(encoder), copy.deepcopy(encoder)
    Trainer(whole, [data], mining_config).run(on_step=lambda _: None, should_stop=lambda: False)
    first = Trainer(interrupted, [data], mining_config)
    steps: list[StepReport] = []
    with pytest.raises(TrainingInterrupted):
        first.run(on_step=steps.append, should_stop=lambda: len(steps) == stop_at)
    again = Trainer(interrupted, [data], mining_config)
    again.load_state_dict(first.state_dict())
    again.run(on_step=steps.append, should_stop=lambda: False)
    assert [step.step for step in steps] == list(range(1, again.total_steps + 1))
    assert _same(whole.state_dict(), interrupted.state_dict())


def test_a_stop_while_mining_is_an_interruption_before_the_step(encoder, data, mining_config) -> None:
    with pytest.raises(TrainingInterrupted) as stopped:
        Trainer(encoder, [data], mining_config).run(on_step=lambda _: None, should_stop=lambda: True)
    assert stopped.value.step == 0


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
