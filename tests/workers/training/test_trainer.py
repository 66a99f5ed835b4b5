from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from encoders.text import TextEncoder
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.batch_loss import TEMPERATURE_BOUNDS, yardstick
from workers.training.batches import Batch
from workers.training.config import LossConfig, TrainingConfig
from workers.training.evaluation import validation_loss
from workers.training.schedule import learning_rate_at
from workers.training.trainer import (
    NonFiniteLossError,
    OutOfMemoryInTraining,
    StepReport,
    Trainer,
    TrainingInterrupted,
)


def never() -> bool:
    return False


def ignore(report: StepReport) -> None:
    pass


def weights(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def trained(encoder: TextEncoder, data: Prepared, config: TrainingConfig) -> list[StepReport]:
    reports: list[StepReport] = []
    Trainer(encoder, [data], config).run(on_step=reports.append, should_stop=never)
    return reports


class StopAfter:
    """Says stop when asked for the (n + 1)-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


# What a run does


def test_training_brings_pairs_together(encoder, data, config):
    loss = yardstick(config.loss, dimension=encoder.dimension)
    before = validation_loss(encoder, data, loss, batch_size=12, seed=0)
    reports = trained(encoder, data, replace(config, n_epochs=20, batch_size=12, learning_rate=5e-3))
    after = validation_loss(encoder, data, loss, batch_size=12, seed=0)
    assert after < before / 2
    assert reports[-1].positive_cosine - reports[-1].negative_cosine > 0.5


def test_every_step_is_reported(encoder, data, config):
    reports = trained(encoder, data, config)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.total_steps for report in reports} == {6}
    assert reports[-1].trained_tokens == 2 * len(data.ids)
    for report in reports:
        assert report.loss > 0
        assert report.grad_norm > 0
        assert 0 < report.learning_rate <= config.learning_rate
        assert report.pairs_per_second == pytest.approx(4 / report.seconds)
        assert report.tokens_per_second > report.pairs_per_second


def test_dropout_is_on_in_training_and_off_afterwards(encoder, data, config):
    modes = []
    trainer = Trainer(encoder, [data], config)
    trainer.run(on_step=lambda report: modes.append(encoder.training), should_stop=never)
    assert all(modes)
    assert not encoder.training


def test_the_seed_decides_everything(encoder, data, config):
    twin, other = copy.deepcopy(encoder), copy.deepcopy(encoder)
    trained(encoder, data, config)
    torch.rand(100)  # the global generator's state must not matter
    trained(twin, data, config)
    trained(other, data, replace(config, seed=1))
    assert same(weights(encoder), weights(twin))
    assert not same(weights(encoder), weights(other))


def test_the_seed_decides_dropout_too(encoder, data, config):
    # One batch of all rows: only dropout and the order of rows can differ.
    losses = [trained(copy.deepcopy(encoder), data, replace(config, batch_size=12, n_epochs=1, seed=s)) for s in (0, 1)]
    assert abs(losses[0][0].loss - losses[1][0].loss) > 1e-4


def test_gradients_are_clipped(encoder, data, config):
    # Plain descent would show the scale; AdamW hides it, but not from the first moment: m = (1 − β₁)·g.
    trainer = Trainer(encoder, [data], replace(config, max_grad_norm=1e-3, max_steps=1))
    reports: list[StepReport] = []
    trainer.run(on_step=reports.append, should_stop=never)
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    clipped = torch.nn.utils.get_total_norm(moments).item() / 0.1
    assert reports[0].grad_norm > 1e-3
    assert clipped == pytest.approx(1e-3, rel=1e-2)


def test_small_gradients_are_left_alone(encoder, data, config):
    trainer = Trainer(encoder, [data], replace(config, max_grad_norm=1e6, max_steps=1))
    reports: list[StepReport] = []
    trainer.run(on_step=reports.append, should_stop=never)
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert torch.nn.utils.get_total_norm(moments).item() / 0.1 == pytest.approx(reports[0].grad_norm, rel=1e-4)


def test_only_matrices_decay(encoder, data, config):
    trainer = Trainer(encoder, [data], config)
    decayed, spared, _ = trainer.optimizer.param_groups
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert all(".bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in spared["params"])
    assert all(names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_learnable_temperature_is_learnt_and_reported(encoder, data, config):
    fixed = trained(copy.deepcopy(encoder), data, replace(config, loss=LossConfig(temperature=0.1)))
    assert {report.temperature for report in fixed} == {0.1}
    learnable = trained(encoder, data, replace(config, n_epochs=20, loss=LossConfig(temperature="learnable")))
    assert learnable[0].temperature == pytest.approx(0.05)
    assert learnable[-1].temperature != pytest.approx(0.05, rel=0.1)
    low, high = TEMPERATURE_BOUNDS
    assert all(low <= report.temperature <= high for report in learnable)


def test_frozen_weights_stay(encoder, data, config):
    embeddings = encoder.transformer.embeddings.word_embeddings.weight.requires_grad_(False)
    before = embeddings.clone()
    trained(encoder, data, config)
    assert torch.equal(embeddings, before)


# The learning rate


def test_the_learning_rate_rises_and_falls_in_lines():
    rates = [learning_rate_at(step, 10, 0.3, 1.0) for step in range(10)]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, *(left / 7 for left in range(7, 0, -1))])


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
def test_the_learning_rate_peaks_once_and_is_never_zero(total_steps, warmup_ratio):
    rates = [learning_rate_at(step, total_steps, warmup_ratio, 2e-5) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == 2e-5
    peak = rates.index(2e-5)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# Stopping and going on


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_it_stops_between_steps_when_asked(encoder, data, config, steps):
    trainer = Trainer(encoder, [data], config)
    with pytest.raises(TrainingInterrupted, match=f"after step {steps} of 6") as caught:
        trainer.run(on_step=ignore, should_stop=StopAfter(steps))
    assert caught.value.step == trainer.step == steps
    assert not encoder.training


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(temperature=0.1),
        LossConfig(name="supcon", temperature="learnable", memory_size=11),
        LossConfig(temperature="learnable", symmetric=False, memory_size=11),
    ],
)
def test_three_interruptions_change_no_bit(encoder, data, config, loss):
    config = replace(config, loss=loss)
    unbroken = copy.deepcopy(encoder)
    expected = trained(unbroken, data, config)
    reports: list[StepReport] = []
    state = None
    for stop in (StopAfter(1), StopAfter(2), StopAfter(1), never):
        torch.rand(7)
        trainer = Trainer(encoder, [data], config)
        if state is not None:
            trainer.load_state_dict(state)
        if stop is never:
            trainer.run(on_step=reports.append, should_stop=stop)
        else:
            with pytest.raises(TrainingInterrupted):
                trainer.run(on_step=reports.append, should_stop=stop)
        state = copy.deepcopy(trainer.state_dict())
    assert same(weights(encoder), weights(unbroken))
    assert [(r.step, r.loss, r.trained_tokens) for r in reports] == [
        (r.step, r.loss, r.trained_tokens) for r in expected
    ]


@pytest.mark.parametrize("kind", ["texts", "triplets", "labels", "several"])
def test_every_kind_of_data_trains_and_goes_on_from_every_step(encoder, config, tmp_path, kind, colours, data):
    other = {
        "texts": [Row("texts", row.inputs[:1]) for row in colours],
        "triplets": [Row("triplets", (*row.inputs, f"no {row.inputs[0]}")) for row in colours],
        "labels": [Row("labels", (text,), row.inputs[0]) for row in colours for text in row.inputs],
        "several": [Row("views", (*row.inputs, f"and {row.inputs[0]}")) for row in colours],
    }[kind]
    datasets = [prepare(iter(other), tmp_path / "entry", tokenizer=encoder.tokenizer, limit=48)]
    if kind == "several":
        datasets.append(data)
    config = replace(config, view="deletion")
    reports: list[StepReport] = []
    states = []

    def keep(report: StepReport) -> None:
        reports.append(report)
        states.append(copy.deepcopy((trainer.state_dict(), encoder.state_dict())))

    trainer = Trainer(encoder, datasets, config)
    trainer.run(on_step=keep, should_stop=never)
    assert len(reports) == trainer.total_steps >= 6
    for step, (state, state_of_encoder) in enumerate(states, start=1):
        resumed = Trainer(encoder, datasets, config)
        resumed.load_state_dict(state)
        encoder.load_state_dict(state_of_encoder)
        losses: list[float] = []
        resumed.run(on_step=lambda report, losses=losses: losses.append(report.loss), should_stop=never)
        assert losses == [report.loss for report in reports[step:]]


def test_a_finished_trainer_has_nothing_left_to_do(encoder, data, config):
    trainer = Trainer(encoder, [data], config)
    trainer.run(on_step=ignore, should_stop=never)
    before = weights(encoder)
    trainer.run(on_step=pytest.fail, should_stop=never)
    assert same(weights(encoder), before)


# When it goes wrong


def untouched(trainer: Trainer, before: dict[str, Tensor]) -> bool:
    return (
        same(weights(trainer.encoder), before)
        and trainer.step == trainer.trained_tokens == 0
        and not trainer.optimizer.state
        and all(parameter.grad is None for parameter in trainer.encoder.parameters())
    )


def test_non_finite_embeddings_update_nothing(encoder, data, config):
    with torch.no_grad():
        encoder.transformer.embeddings.LayerNorm.weight[3] = math.nan
    # NaN is not equal to itself, so what could have moved is looked at without it.
    before = {name: tensor.nan_to_num() for name, tensor in weights(encoder).items()}
    trainer = Trainer(encoder, [data], config)
    with pytest.raises(
        NonFiniteLossError,
        match=r"NaN or infinite at step 1 of 6.*rows (\d+, ){3}\d+ of the training",
    ):
        trainer.run(on_step=pytest.fail, should_stop=never)
    with torch.no_grad():
        encoder.transformer.embeddings.LayerNorm.weight[3] = 0.0
    assert untouched(trainer, before)


def test_the_batch_that_gave_nan_is_named_by_its_rows(encoder, data, config):
    with torch.no_grad():
        encoder.transformer.embeddings.LayerNorm.weight[3] = math.nan
    with pytest.raises(NonFiniteLossError, match="rows 1, 2, 3, 4, 5, 6, 7, 8 and 4 more of the training file"):
        Trainer(encoder, [data], replace(config, batch_size=12)).run(on_step=pytest.fail, should_stop=never)


@pytest.mark.parametrize(("spoilt", "what"), [("value", "The loss is"), ("gradient", "The gradient is")])
def test_a_non_finite_loss_or_gradient_updates_nothing(encoder, data, config, spoilt, what):
    before = weights(encoder)
    trainer = Trainer(encoder, [data], config)
    clean = trainer.loss.forward

    def spoil(embeddings: Tensor, batch: Batch):
        result = clean(embeddings, batch)
        if spoilt == "value":
            return replace(result, value=result.value * math.nan)
        return replace(result, value=result.value + (embeddings.sum() * 0.0).sqrt())

    trainer.loss.forward = spoil
    with pytest.raises(NonFiniteLossError, match=f"{what} NaN or infinite at step 1 of 6") as caught:
        trainer.run(on_step=pytest.fail, should_stop=never)
    assert caught.value.code == "non_finite_loss"
    assert untouched(trainer, before)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_lack_of_memory_names_the_remedies(encoder, data, config, error):
    before = weights(encoder)
    trainer = Trainer(encoder, [data], config)

    def fail(*args: object) -> None:
        raise error

    trainer.loss.forward = fail
    with pytest.raises(OutOfMemoryInTraining, match=r"batch_size \(it is 4\) or max_seq_length \(it is 48\)") as caught:
        trainer.run(on_step=pytest.fail, should_stop=never)
    assert caught.value.code == "out_of_memory"
    assert untouched(trainer, before)


def test_the_cpu_allocators_own_error_is_recognised(encoder, data, config):
    trainer = Trainer(encoder, [data], config)
    trainer.loss.forward = lambda embeddings, batch: torch.empty(2**46)
    with pytest.raises(OutOfMemoryInTraining):
        trainer.run(on_step=pytest.fail, should_stop=never)


def test_other_errors_pass_through(encoder, data, config):
    trainer = Trainer(encoder, [data], config)

    def fail(*args: object) -> None:
        raise RuntimeError("something else")

    trainer.loss.forward = fail
    with pytest.raises(RuntimeError, match="something else"):
        trainer.run(on_step=pytest.fail, should_stop=never)
