from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encoders.errors import UnsafeFolderError
from encoders.folder import check_folder, read_max_seq_length
from tests.encoders.tiny_encoder import write_json


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def write_weights(folder: Path, header: object, data: bytes = b"", *, header_size: int | None = None) -> None:
    encoded = json.dumps(header).encode()
    size = struct.pack("<Q", len(encoded) if header_size is None else header_size)
    (folder / "model.safetensors").write_bytes(size + encoded + data)


def test_published_and_tiny_folders_pass(minilm_folder: Path, tiny_folder: Path) -> None:
    check_folder(minilm_folder)
    check_folder(tiny_folder)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "tokens.pkl", "modeling.py", "4_Dense/config.json", "onnx/model.bin"],
)
def test_an_unknown_file_is_named(tiny_folder: Path, name: str) -> None:
    (tiny_folder / name).parent.mkdir(exist_ok=True)
    (tiny_folder / name).write_bytes(b"")
    with pytest.raises(UnsafeFolderError, match=f"{name.split('/')[0]}.* remove it"):
        check_folder(tiny_folder)


def test_a_linked_file_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "vocab.txt").symlink_to(tmp_path)
    with pytest.raises(UnsafeFolderError, match=r"vocab\.txt is a link"):
        check_folder(tiny_folder)


def test_a_linked_folder_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_folder)
    with pytest.raises(UnsafeFolderError, match="links are not followed"):
        check_folder(tmp_path / "link")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"])
def test_a_missing_file_is_named(tiny_folder: Path, name: str) -> None:
    (tiny_folder / name).unlink()
    with pytest.raises(UnsafeFolderError, match=f"{name} is missing"):
        check_folder(tiny_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("setting", ["auto_map", "_attn_implementation_internal"])
def test_settings_that_load_code_are_refused_at_any_depth(tiny_folder: Path, name: str, setting: str) -> None:
    edit(tiny_folder / name, lambda content: content.update(architectures=[{"deep": {setting: {}}}]))
    with pytest.raises(UnsafeFolderError, match=f"{name} sets '{setting}'"):
        check_folder(tiny_folder)


def test_an_unknown_setting_of_a_bert_is_refused(tiny_folder: Path) -> None:
    edit(tiny_folder / "config.json", lambda content: content.update(rotary_base=1e4))
    with pytest.raises(UnsafeFolderError, match="rotary_base"):
        check_folder(tiny_folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda modules: modules[0].update(type="custom_st.Transformer"),
        lambda modules: modules[1].update(type="sentence_transformers.models.Dense"),
        lambda modules: modules[1].update(path="../1_Pooling"),
        lambda modules: modules[1].update(kwargs=["trust_remote_code"]),
        lambda modules: modules.reverse(),
        lambda modules: modules.clear(),
        lambda modules: modules.append("Transformer"),
    ],
)
def test_other_modules_are_refused(tiny_folder: Path, change: Callable[[Any], object]) -> None:
    edit(tiny_folder / "modules.json", change)
    with pytest.raises(UnsafeFolderError, match=r"modules\.json"):
        check_folder(tiny_folder)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, " " * (1 << 16) + "[]", "\ufffe"])
def test_unreadable_json_is_refused(tiny_folder: Path, content: str) -> None:
    (tiny_folder / "modules.json").write_text(content)
    with pytest.raises(UnsafeFolderError, match=r"modules\.json"):
        check_folder(tiny_folder)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ([], b""),
        ({"a": 1}, b""),
        ({"a": {**F32, "dtype": "F64", "data_offsets": [0, 16]}}, bytes(16)),
        ({"a": {**F32, "dtype": "F8_E4M3"}}, bytes(2)),
        ({"a": {**F32, "shape": [3]}}, bytes(8)),
        ({"a": {**F32, "shape": [-2]}}, bytes(8)),
        ({"a": {**F32, "shape": [2.0]}}, bytes(8)),
        ({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
        ({"a": F32, "b": F32}, bytes(8)),
        ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
        ({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, bytes(24)),
        ({"a": F32}, bytes(4)),
        ({"a": F32}, bytes(12)),
    ],
)
def test_unsound_weights_are_refused(tiny_folder: Path, header: object, data: bytes) -> None:
    write_weights(tiny_folder, header, data)
    with pytest.raises(UnsafeFolderError, match=r"model\.safetensors"):
        check_folder(tiny_folder)


@pytest.mark.parametrize("header_size", [100, 2**40, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_unread(tiny_folder: Path, header_size: int) -> None:
    write_weights(tiny_folder, {}, header_size=header_size)
    with pytest.raises(UnsafeFolderError, match="no sound header"):
        check_folder(tiny_folder)


def test_weights_without_even_a_length_are_refused(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(UnsafeFolderError, match="no sound header"):
        check_folder(tiny_folder)


@pytest.mark.parametrize(
    ("sentence_bert", "tokenizer", "expected"),
    [({"max_seq_length": 16}, 32, 16), ({}, 32, 32), ({}, 1e30, 64), ({"max_seq_length": 999}, 32, 64)],
)
def test_the_length_read_is_the_one_stated_where_there_are_positions(
    tiny_folder: Path, sentence_bert: dict[str, int], tokenizer: float, expected: int
) -> None:
    write_json(tiny_folder / "sentence_bert_config.json", sentence_bert)
    write_json(tiny_folder / "tokenizer_config.json", {"model_max_length": tokenizer})
    assert read_max_seq_length(tiny_folder) == expected
