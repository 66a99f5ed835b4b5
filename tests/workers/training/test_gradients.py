from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.bert import Dropout
from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import micro_batches
from workers.training.config import LossConfig, TrainingConfig
from workers.training.micro_batches import TOKENS_AT_ONCE, Parts, automatic_size, tokens_per_row
from workers.training.precision import Probe, in_precision
from workers.training.trainer import Notice, OutOfMemoryInTraining, StepReport, Trainer

LOSSES = [
    LossConfig(temperature=0.1),
    LossConfig(name="supcon", temperature="learnable", memory_size=11),
    LossConfig(temperature=0.1, symmetric=False, memory_size=11),
]


def never() -> bool:
    return False


def gradients_of(encoder: TextEncoder, data: Prepared, config: TrainingConfig) -> tuple[dict[str, Tensor], Trainer]:
    """Gradients as the optimizer sees them in the first step."""
    trainer = Trainer(encoder, [data], replace(config, max_steps=1, max_grad_norm=1e6, learning_rate=1e-30))
    trainer.run(on_step=lambda report: None, should_stop=never)
    names = [*encoder.named_parameters(), *trainer.loss.named_parameters()]
    return {name: parameter.grad for name, parameter in names if parameter.grad is not None}, trainer


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


class MemoryFor:
    """Lets an encoder embed so many texts at once, and no more."""

    def __init__(self, encoder: TextEncoder, most: int) -> None:
        self.most = most
        self.largest = 0
        encoder.register_forward_pre_hook(self)

    def __call__(self, encoder: torch.nn.Module, arguments: tuple[list[np.ndarray]]) -> None:
        texts = len(arguments[0])
        if texts > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        self.largest = max(self.largest, texts)


# Micro-batches


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_gradients_of_micro_batches_are_those_of_one_pass(encoder, data, config, loss, size):
    config = replace(config, batch_size=12, loss=loss)
    encoder.dropout = Dropout()
    wanted, _ = gradients_of(copy.deepcopy(encoder), data, replace(config, micro_batch_size=12))
    found, _ = gradients_of(encoder, data, replace(config, micro_batch_size=size))
    assert_close(found, wanted)


def test_a_run_in_micro_batches_repeats_to_the_bit_with_dropout(encoder, data, config):
    twin = copy.deepcopy(encoder)
    for each in (encoder, twin):
        torch.rand(5)
        Trainer(each, [data], replace(config, micro_batch_size=2)).run(on_step=lambda _: None, should_stop=never)
    assert all(torch.equal(one, other) for one, other in zip(encoder.parameters(), twin.parameters(), strict=True))


def test_no_pass_holds_more_than_its_share(encoder, data, config):
    memory = MemoryFor(encoder, most=99)
    gradients_of(encoder, data, replace(config, batch_size=12, micro_batch_size=3))
    assert 0 < memory.largest <= 12  # of 24 texts, in 4 parts of about as many tokens


def test_parts_hold_every_text_once_and_about_as_many_tokens():
    rng = np.random.default_rng(0)
    texts = [np.full(length, number) for number, length in enumerate(rng.integers(1, 60, size=50))]
    parts = Parts.of(texts, 7)
    held = parts[0 : len(parts)]
    assert [held[place][0] for place in parts.back] == list(range(50))
    assert len(parts) == 7
    share = sum(map(len, texts)) / 7
    assert all(abs(sum(map(len, part)) - share) <= 60 for part in parts.parts)


@pytest.mark.parametrize(
    ("batch_size", "tokens", "size"), [(64, 30.0, 64), (256, 30.0, 256), (512, 100.0, 64), (8, 1e9, 1)]
)
def test_auto_is_the_whole_batch_or_the_largest_power_of_two_that_fits(batch_size, tokens, size):
    assert automatic_size(batch_size, tokens) == size
    assert size == 1 or size * tokens <= TOKENS_AT_ONCE


def test_auto_goes_by_the_tokens_of_the_data(encoder, data, config, monkeypatch):
    monkeypatch.setattr(micro_batches, "TOKENS_AT_ONCE", 5 * tokens_per_row(data))
    trainer = Trainer(encoder, [data], replace(config, batch_size=12))
    assert trainer.resolve() == (4, "fp32")


# Running out of memory


@pytest.mark.parametrize("loss", LOSSES)
def test_out_of_memory_halves_and_goes_on_with_the_same_gradient(encoder, data, config, loss):
    config = replace(config, batch_size=12, loss=loss, n_epochs=3)
    encoder.dropout = Dropout()
    plain = copy.deepcopy(encoder)
    expected: list[StepReport] = []
    Trainer(plain, [data], config).run(on_step=expected.append, should_stop=never)
    MemoryFor(encoder, most=10)
    notices: list[Notice] = []
    reports: list[StepReport] = []
    trainer = Trainer(encoder, [data], config, on_notice=notices.append)
    trainer.run(on_step=reports.append, should_stop=never)
    assert [report.loss for report in reports] == pytest.approx([report.loss for report in expected], rel=1e-4)
    assert [re.findall(r"micro_batch_size is (\d+)", notice.message) for notice in notices] == [["6"], ["3"]]
    assert {notice.level for notice in notices} == {"warn"}
    assert trainer.state_dict()["micro_batch_size"] == 3


@pytest.mark.parametrize("dims", [(), (4, 16)])
def test_memory_that_runs_out_in_the_backward_pass_leaves_the_queue_as_it_was(encoder, data, config, dims):
    encoder.dropout = Dropout()
    config = replace(config, loss=LossConfig(temperature=0.1, memory_size=11), matryoshka_dims=dims)
    _, plain = gradients_of(copy.deepcopy(encoder), data, replace(config, micro_batch_size=2))
    once = [RuntimeError("can't allocate memory")]

    def fail(gradient: Tensor) -> None:
        if once:
            raise once.pop()

    encoder.transformer.embeddings.LayerNorm.weight.register_hook(fail)
    _, trainer = gradients_of(encoder, data, config)
    assert not once
    assert trainer.gradient.micro_batch_size == 2
    for name, value in plain.loss.state_dict().items():
        assert torch.allclose(trainer.loss.state_dict()[name], value, atol=1e-5), name


def test_a_smaller_micro_batch_survives_an_interruption(encoder, data, config):
    MemoryFor(encoder, most=4)
    trainer = Trainer(encoder, [data], config)
    trainer.run(on_step=lambda report: None, should_stop=never)
    resumed = Trainer(encoder, [data], config)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert resumed.resolve().micro_batch_size == trainer.gradient.micro_batch_size < 4


def test_one_row_that_does_not_fit_is_the_end(encoder, data, config):
    MemoryFor(encoder, most=0)
    notices: list[Notice] = []
    with pytest.raises(OutOfMemoryInTraining, match="Step 1"):
        Trainer(encoder, [data], config, on_notice=notices.append).run(on_step=pytest.fail, should_stop=never)
    assert len(notices) == 2  # 4, 2, 1


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from encoders.text import TextEncoder
from workers.data.preparation import prepare
from workers.data.row import Row
from workers.training.trainer import Trainer
from tests.workers.training.conftest import CONFIG

torch.set_num_threads(1)
encoder = TextEncoder.load(Path(sys.argv[1]))
rows = [Row("pairs", (f"{n} " * 60, f"{n + 5000} " * 60)) for n in range(300)]
data = prepare(iter(rows), Path(sys.argv[2]), tokenizer=encoder.tokenizer, limit=48)
trainer = Trainer(encoder, [data], replace(CONFIG, batch_size=300, micro_batch_size=300, max_steps=2),
                  on_notice=lambda notice: print(notice.message))
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize:")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 140 * 2**20,) * 2)
trainer.run(on_step=lambda report: print("step", report.step), should_stop=lambda: False)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs to know how much memory is used")
def test_a_limit_of_memory_that_is_real(tiny_folder, tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tiny_folder), str(tmp_path / "entry")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ran out of memory. micro_batch_size is 150 from here on" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "step 2"


# Precision


def test_bf16_trains_float32_weights_with_a_float32_loss(encoder, data, config):
    seen = []
    trainer = Trainer(encoder, [data], replace(config, precision="bf16"))
    trainer.loss.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    encoder.transformer.encoder["layer"][0].output.dense.register_forward_hook(
        lambda *given: seen.append(given[2].dtype)
    )
    trainer.run(on_step=lambda report: None, should_stop=never)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    moments = [state["exp_avg"].dtype for state in trainer.optimizer.state.values()]
    assert set(moments) == {torch.float32}


def test_the_loss_in_bf16_is_near_that_in_fp32(encoder, data, config):
    encoder.dropout = Dropout()
    losses: list[float] = []
    for precision in ("fp32", "bf16"):
        trainer = Trainer(copy.deepcopy(encoder), [data], replace(config, precision=precision, max_steps=1))
        trainer.run(on_step=lambda report: losses.append(report.loss), should_stop=never)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_auto_measures_says_both_times_and_changes_nothing_else(encoder, data, config):
    config = replace(config, n_epochs=20)
    notices: list[Notice] = []
    twin = copy.deepcopy(encoder)
    trainer = Trainer(encoder, [data], replace(config, precision="auto"), on_notice=notices.append)
    resolved = trainer.resolve()
    assert re.match(rf"Precision: {resolved.precision}\. .* \d+ ms in fp32 and \d+ ms in bf16", notices[0].message)
    trainer.run(on_step=lambda report: None, should_stop=never)
    assert len(notices) == 1
    forced = Trainer(twin, [data], replace(config, precision=resolved.precision))
    forced.run(on_step=lambda report: None, should_stop=never)
    assert all(torch.equal(one, other) for one, other in zip(encoder.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(("bf16", "choice"), [(0.8, "bf16"), (0.9, "fp32"), (12.0, "fp32")])
def test_bf16_is_chosen_where_it_is_clearly_faster(bf16, choice):
    assert Probe(fp32=1.0, bf16=bf16).choice == choice


def test_what_was_chosen_is_kept_in_the_state(encoder, data, config):
    state = Trainer(encoder, [data], replace(config, precision="bf16")).state_dict()
    resumed = Trainer(encoder, [data], replace(config, precision="auto", n_epochs=20), on_notice=pytest.fail)
    resumed.load_state_dict(state)
    assert resumed.resolve().precision == "bf16"


def test_a_few_steps_are_not_worth_a_measurement(encoder, data, config):
    trainer = Trainer(encoder, [data], replace(config, precision="auto"), on_notice=pytest.fail)
    assert trainer.resolve().precision == "fp32"


def test_fp32_is_left_alone_under_the_context():
    with in_precision("fp32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
