from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder
from tests.threads import one_thread
from tests.workers.data.rows import pair
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.config import LossConfig, TrainingConfig

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
    precision="fp32",  # not what this machine happens to be faster with
)


@pytest.fixture(autouse=True, scope="package")
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def encoder(tiny_folder: Path) -> TextEncoder:
    return TextEncoder.load(tiny_folder)


@pytest.fixture(scope="session")
def colours() -> list[Row]:
    """Twelve pairs, of different lengths, that a tiny encoder can learn to tell apart."""
    return [pair(f"{colour} {colour} paint", f"more of {colour} {colour} {colour}") for colour in COLOURS]


@pytest.fixture(scope="session")
def data(colours: list[Row], tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The colours, tokenized for the tiny encoder."""
    tokenizer = TextEncoder.load(tiny_folder).tokenizer
    return prepare(iter(colours), tmp_path_factory.mktemp("colours") / "entry", tokenizer=tokenizer, limit=48)


@pytest.fixture
def config() -> TrainingConfig:
    return replace(CONFIG)
