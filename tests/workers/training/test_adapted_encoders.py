"""Encoders of which a part is trained, and padded ones, in the training loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.adaptation import Adaptation
from encoders.bert import Dropout
from encoders.text import TextEncoder
from tests.encoders.random_models import write_model
from workers.data.prepared import Prepared
from workers.training.config import LossConfig, TrainingConfig
from workers.training.trainer import Notice, StepReport, Trainer

ADAPTATIONS: list[dict[str, Any]] = [
    {"freeze_layers": 1},
    {"train": "lora", "lora_rank": 2},
    {"train": "projection", "projection_dim": 16},
]


@pytest.fixture(params=ADAPTATIONS, ids=str)
def adapted(request: pytest.FixtureRequest, tiny_folder: Path) -> TextEncoder:
    encoder = TextEncoder.load(tiny_folder)
    Adaptation(**request.param).prepare(encoder, seed=1)
    return encoder


def train(encoder: TextEncoder, data: Prepared, config: TrainingConfig, **trainer: Any) -> list[StepReport]:
    reports: list[StepReport] = []
    Trainer(encoder, [data], config, **trainer).run(on_step=reports.append, should_stop=lambda: False)
    return reports


def test_micro_batches_take_the_steps_of_whole_batches(
    adapted: TextEncoder, data: Prepared, config: TrainingConfig
) -> None:
    adapted.dropout = Dropout()
    config = replace(config, batch_size=12, n_epochs=3, loss=LossConfig(temperature="learnable", memory_size=11))
    config = replace(config, matryoshka_dims=(4, 8))
    whole = [report.loss for report in train(copy.deepcopy(adapted), data, config)]
    parts = [report.loss for report in train(adapted, data, replace(config, micro_batch_size=5))]
    assert parts == pytest.approx(whole, rel=1e-4)
    assert len(set(whole)) == len(whole)


def test_what_is_frozen_stays_and_the_rest_moves(adapted: TextEncoder, data: Prepared, config: TrainingConfig) -> None:
    before = {name: weight.detach().clone() for name, weight in adapted.named_parameters()}
    notices: list[Notice] = []
    reports = train(adapted, data, replace(config, n_epochs=20, precision="auto"), on_notice=notices.append)
    moved = {name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert [notice.level for notice in notices] == ["info"], "the precision was measured, and nothing collapsed"
    assert all(report.effective_rank is None or report.effective_rank > 1 for report in reports)


@pytest.mark.parametrize("micro_batch_size", [12, 4])
def test_a_padded_encoder_reports_its_padding(
    tmp_path: Path, data: Prepared, config: TrainingConfig, micro_batch_size: int
) -> None:
    padded = TextEncoder.load(write_model(tmp_path / "model", "distilbert"))
    sizes: list[tuple[int, int]] = []  # tokens of the texts, and of the padded batch

    def count(_: torch.nn.Module, arguments: tuple[list[Any]]) -> None:
        lengths = [len(text) for text in arguments[0]]
        sizes.append((sum(lengths), len(lengths) * max(lengths)))

    padded.register_forward_pre_hook(count)
    config = replace(config, batch_size=12, max_steps=1, micro_batch_size=micro_batch_size)
    (report,) = train(padded, data, config)
    texts, read = map(sum, zip(*sizes, strict=True))
    assert report.padding == pytest.approx(1 - texts / read)
    assert 0 < report.padding < 1


def test_a_packed_encoder_has_none(encoder: TextEncoder, data: Prepared, config: TrainingConfig) -> None:
    assert {report.padding for report in train(encoder, data, config)} == {0.0}
