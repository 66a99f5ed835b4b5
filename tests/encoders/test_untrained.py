from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from encoders.export import save
from encoders.folder import check_folder, read_dimension, read_max_seq_length
from encoders.text import TextEncoder
from encoders.tokenizer_training import train_tokenizer
from encoders.untrained import UntrainedShape, write_untrained

SHAPE = UntrainedShape(layers=2, hidden_size=128, max_seq_length=24)
TEXTS = ["", "A cat", "two CATS (black ones) sat; 中文 кошка", "word " * 300]


def write(folder: Path, *, seed: int = 0) -> Path:
    folder.mkdir()
    texts = [["the cat sat on the mat", "two cats (black cats) sat", "кошка, a word and a word"]]
    write_untrained(folder, train_tokenizer(texts, vocabulary_size=400), SHAPE, seed=seed)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "untrained")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_other_weights_only(tmp_path: Path, folder: Path) -> None:
    again, other = write(tmp_path / "again"), write(tmp_path / "other", seed=1)
    assert bytes_of(again) == bytes_of(folder)
    assert {name for name, content in bytes_of(other).items() if content != bytes_of(folder)[name]} == {
        "model.safetensors"
    }


def test_the_folder_is_one_that_is_trusted_and_says_its_sizes(folder: Path) -> None:
    check_folder(folder)
    assert (read_dimension(folder), read_max_seq_length(folder)) == (128, 24)


def test_transformers_finds_every_weight_that_it_looks_for(folder: Path) -> None:
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (2, 2)


def test_transformers_makes_the_same_tokens(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS, truncation=True)["input_ids"]
    ours = TextEncoder.load(folder).tokenizer(TEXTS)
    assert [each.ids.tolist() for each in ours] == theirs


def test_what_is_saved_of_it_opens_everywhere_alike(folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(folder)
    assert encoder.packs
    save(encoder, tmp_path / "saved", base_folder=folder)
    expected = encoder.encode(TEXTS)
    peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert peer.max_seq_length == 24
    np.testing.assert_allclose(peer.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "saved").encode(TEXTS), expected)


def test_texts_differ_before_anything_is_learned(folder: Path) -> None:
    vectors = TextEncoder.load(folder).encode(["the cat", "on the mat", "black"])
    cosines = vectors @ vectors.T
    assert np.abs(cosines[~np.eye(3, dtype=bool)]).max() < 0.95


def test_it_is_written_without_torch_and_without_safetensors() -> None:
    program = "import sys, encoders.untrained; print({'torch', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
