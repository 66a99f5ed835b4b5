from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder
from workers.training.config import LossConfig, TrainingConfig
from workers.training.datasets import PairDataset
from workers.training.tokens import TokenizedDataset, tokenize

COLOURS = [
    "red",
    "green",
    "blue",
    "white",
    "black",
    "grey",
    "brown",
    "pink",
    "gold",
    "silver",
    "lime",
    "navy",
]
CONFIG = TrainingConfig(
    loss=LossConfig(temperature=0.1),
    n_epochs=2,
    batch_size=4,
    learning_rate=1e-3,
    warmup_ratio=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    max_steps=None,
    max_seq_length=48,
    seed=0,
)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Where another process is busy, OpenMP's threads spin for each other: a step of 20 ms takes 2 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def encoder(tiny_folder: Path) -> TextEncoder:
    return TextEncoder.load(tiny_folder)


@pytest.fixture
def colours() -> PairDataset:
    """Twelve pairs, of different lengths, that a tiny encoder can learn to tell apart."""
    texts = [text for colour in COLOURS for text in (f"{colour} {colour} paint", f"more of {colour} {colour} {colour}")]
    return PairDataset(texts, array("i", range(0, 24, 2)), array("i", range(1, 24, 2)))


@pytest.fixture
def tokens(colours: PairDataset, encoder: TextEncoder) -> TokenizedDataset:
    return tokenize(colours, encoder)


@pytest.fixture
def config() -> TrainingConfig:
    return replace(CONFIG)
