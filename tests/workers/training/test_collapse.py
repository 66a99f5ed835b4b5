from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from workers.training.collapse import CollapseAlarm, EmbeddingsCollapsedError
from workers.training.spread import Spread
from workers.training.trainer import Notice, StepReport, Trainer

HEALTHY = Spread(uniformity=-3.0, effective_rank=90.0, directions=128)
FLAT = Spread(uniformity=-3.0, effective_rank=3.0, directions=128)


def never() -> bool:
    return False


@pytest.mark.parametrize(("spread", "cosine"), [(HEALTHY, 0.99), (FLAT, 0.1), (FLAT, None)])
def test_it_goes_off_once_after_three_in_a_row(spread, cosine):
    alarm = CollapseAlarm()
    told = [(spread, cosine)] * 2 + [(HEALTHY, 0.1)] + [(spread, cosine)] * 5
    assert [alarm.goes_off(*each) for each in told] == [False] * 5 + [True] + [False] * 2


def test_its_state_goes_on():
    alarm, resumed = CollapseAlarm(), CollapseAlarm()
    for _ in range(2):
        alarm.goes_off(FLAT, None)
    resumed.load_state_dict(alarm.state_dict())
    assert resumed.goes_off(FLAT, None)


@pytest.fixture
def far_too_fast(config):
    return replace(config, learning_rate=10.0, warmup_ratio=0.0, n_epochs=5, weight_decay=0.0)


def test_a_learning_rate_that_is_far_too_high_collapses_and_warns_once(encoder, data, far_too_fast):
    notices: list[Notice] = []
    reports: list[StepReport] = []
    Trainer(encoder, [data], far_too_fast, on_notice=notices.append).run(on_step=reports.append, should_stop=never)
    assert len(reports) == 15
    assert [notice.level for notice in notices] == ["warn"]
    assert "Try a tenth of the learning rate (it is 10)" in notices[0].message


def test_a_job_may_ask_to_be_stopped_and_says_what_to_try(encoder, data, far_too_fast):
    reports: list[StepReport] = []
    trainer = Trainer(encoder, [data], replace(far_too_fast, on_collapse="stop"))
    with pytest.raises(EmbeddingsCollapsedError, match=r"step \d+ of 15.*tenth of the learning rate") as caught:
        trainer.run(on_step=reports.append, should_stop=never)
    assert caught.value.code == "embeddings_collapsed"
    assert len(reports) == trainer.step < 15
    assert reports[-1].negative_cosine > 0.95


def test_training_that_goes_well_does_not_set_it_off(encoder, data, config):
    healthy = replace(config, n_epochs=10, learning_rate=5e-3, on_collapse="stop")
    reports: list[StepReport] = []
    Trainer(copy.deepcopy(encoder), [data], healthy, on_notice=pytest.fail).run(
        on_step=reports.append, should_stop=never
    )
    assert all(report.effective_rank > 2 for report in reports)
    assert all(report.uniformity < 0 for report in reports)
    assert all(report.alignment == pytest.approx(2 - 2 * report.positive_cosine) for report in reports)
