from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from encoders.errors import NonFiniteWeightsError, UnsafeFolderError
from encoders.export import save
from encoders.folder import check_folder
from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_tiny_encoder

TEXTS = ["", "a cat", "two cats sat on the mat", "word " * 300]


def disturb(encoder: TextEncoder) -> None:
    """Stands for training: every weight moves a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def test_a_tuned_minilm_opens_everywhere_alike(own_minilm: TextEncoder, minilm_folder: Path, tmp_path: Path) -> None:
    disturb(own_minilm)
    save(own_minilm, tmp_path / "tuned", base_folder=minilm_folder)
    check_folder(tmp_path / "tuned")
    expected = own_minilm.encode(TEXTS)
    peer = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    assert peer.max_seq_length == 256
    assert ((peer.encode(TEXTS) * expected).sum(axis=1) > 1 - 1e-5).all()
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "tuned").encode(TEXTS), expected)


def test_weights_that_are_not_used_here_are_carried_over(
    own_minilm: TextEncoder, minilm_folder: Path, tmp_path: Path
) -> None:
    disturb(own_minilm)
    save(own_minilm, tmp_path / "tuned", base_folder=minilm_folder)
    before, after = (
        load_file(minilm_folder / "model.safetensors"),
        load_file(tmp_path / "tuned/model.safetensors"),
    )
    assert after.keys() == before.keys() - {"embeddings.position_ids"}
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {"pooler.dense.weight", "pooler.dense.bias"}


def test_the_pooling_is_kept(tmp_path: Path) -> None:
    base = write_tiny_encoder(tmp_path / "base", pooling="cls")
    encoder = TextEncoder.load(base)
    save(encoder, tmp_path / "tuned", base_folder=base)
    np.testing.assert_array_equal(TextEncoder.load(tmp_path / "tuned").encode(TEXTS), encoder.encode(TEXTS))


def test_the_tokenizer_is_written_without_its_own_cut_and_padding(
    minilm: TextEncoder, minilm_folder: Path, tmp_path: Path
) -> None:
    save(minilm, tmp_path / "tuned", base_folder=minilm_folder)
    before = json.loads((minilm_folder / "tokenizer.json").read_text())
    after = json.loads((tmp_path / "tuned/tokenizer.json").read_text())
    assert after == before | {"truncation": None, "padding": None}


def test_the_readme_ends_with_what_the_caller_adds(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    save(tiny, tmp_path / "tuned", base_folder=tiny_folder, extra_readme="## Trained on\n\nA hundred pairs.")
    assert (tmp_path / "tuned/README.md").read_text().endswith("## Trained on\n\nA hundred pairs.\n")


def test_other_users_may_read_the_files(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    save(tiny, tmp_path / "tuned", base_folder=tiny_folder)
    assert (tmp_path / "tuned/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_model_that_could_not_be_loaded_is_not_written(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.transformer.embeddings.word_embeddings.weight[5] = torch.nan
    with pytest.raises(NonFiniteWeightsError):
        save(tiny, tmp_path / "tuned", base_folder=tiny_folder)
    assert not (tmp_path / "tuned").exists()


def test_a_folder_in_use_is_left_alone(tiny: TextEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFolderError, match="holds files already"):
        save(tiny, tiny_folder, base_folder=tiny_folder)


def test_loading_and_saving_import_neither_transformers_nor_sentence_transformers(
    tiny_folder: Path, tmp_path: Path
) -> None:
    code = """
import sys
from pathlib import Path
from encoders.export import save
from encoders.text import TextEncoder
base, target = map(Path, sys.argv[1:])
save(TextEncoder.load(base), target, base_folder=base)
print(sorted({"transformers", "sentence_transformers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path / "tuned")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
