from __future__ import annotations

import copy
from pathlib import Path

import pytest

from encoders.registry import locate
from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import MINILM, write_tiny_encoder


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return write_tiny_encoder(tmp_path / "tiny")


@pytest.fixture
def tiny(tiny_folder: Path) -> TextEncoder:
    return TextEncoder.load(tiny_folder)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    return locate(MINILM, None)


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> TextEncoder:
    """Shared: not to be changed by a test."""
    return TextEncoder.load(minilm_folder)


@pytest.fixture
def own_minilm(minilm: TextEncoder) -> TextEncoder:
    return copy.deepcopy(minilm)
