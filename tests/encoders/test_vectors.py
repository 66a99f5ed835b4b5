from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.adapter_folder import CONFIG, FORMS, Form
from encoders.errors import NonFiniteWeightsError, UnsafeFolderError
from encoders.folder import WEIGHTS
from encoders.vectors import VectorAdapter

D = 6


def given(n: int = 5, d: int = D) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def trained(form: Form) -> VectorAdapter:
    """One whose every weight is of some size, as after training."""
    adapter = VectorAdapter.untrained(form, D, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return adapter


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.fixture
def folder(form: Form, tmp_path: Path) -> Path:
    trained(form).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_untrained_it_leaves_every_cosine_as_it_is(form: Form) -> None:
    made = VectorAdapter.untrained(form, D, seed=0).embed(given())
    np.testing.assert_allclose(made @ made.T, unit(given()) @ unit(given()).T, atol=1e-6)


def test_what_comes_out_has_length_one_whatever_the_length_of_what_goes_in(form: Form) -> None:
    adapter = trained(form)
    made = adapter.embed(given())
    assert np.linalg.norm(made, axis=1) == pytest.approx(1.0, abs=1e-6)
    for scale in (1e-30, 1e-3, 1e30):
        np.testing.assert_allclose(adapter.embed(given() * np.float32(scale)), made, atol=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(form: Form) -> None:
    adapter = trained(form)
    np.testing.assert_allclose(adapter.embed(list(given()))[3:4], adapter.embed(given()[3:4]), atol=1e-6)


def test_no_vectors_are_none_and_have_a_gradient(form: Form) -> None:
    made = VectorAdapter.untrained(form, D, seed=0)([])
    assert made.shape == (0, D)
    made.sum().backward()


def test_every_matrix_can_be_learnt_from_the_start(form: Form) -> None:
    adapter = VectorAdapter.untrained(form, D, seed=0)
    adapter(given()).square().sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in adapter.parameters())


def test_saved_and_loaded_it_is_equal_to_the_bit(form: Form, folder: Path) -> None:
    again = VectorAdapter.load(folder)
    assert (again.form, again.dimension, again.training) == (form, D, False)
    assert np.array_equal(again.embed(given()), trained(form).embed(given()))


def test_the_readme_shows_how_to_do_without_us(form: Form, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"vectors": given()}
    exec(code, names)
    np.testing.assert_allclose(names["x"], VectorAdapter.load(folder).embed(given()), atol=1e-5)


def test_it_is_written_to_a_folder_of_its_own(form: Form, folder: Path) -> None:
    with pytest.raises(UnsafeFolderError, match="a folder of its own"):
        trained(form).save(folder)


def test_weights_that_are_not_finite_are_neither_written_nor_loaded(form: Form, tmp_path: Path, folder: Path) -> None:
    adapter = trained(form)
    with torch.no_grad():
        next(adapter.parameters())[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError):
        adapter.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-4:] = struct.pack("<f", float("inf"))
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(NonFiniteWeightsError):
        VectorAdapter.load(folder)


def setting(**change: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | change
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return edit


def link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda folder: (folder / "adapter.pkl").write_bytes(b""), "adapter.pkl has no place", id="pickle"),
        pytest.param(lambda folder: (folder / "code").mkdir(), "code has no place", id="a folder"),
        pytest.param(lambda folder: (folder / CONFIG).unlink(), "adapter.json is missing", id="no config"),
        pytest.param(lambda folder: (folder / WEIGHTS).unlink(), "safetensors is missing", id="no weights"),
        pytest.param(link, "is a link", id="a link"),
        pytest.param(lambda folder: (folder / CONFIG).write_text("{"), "not readable JSON", id="torn config"),
        pytest.param(lambda folder: (folder / CONFIG).write_text(" " * 70_000), "at most 65536", id="a large config"),
        pytest.param(setting(kind="bert"), "must have 'kind'", id="another kind"),
        pytest.param(setting(form="cubic"), "one of linear, mlp", id="another form"),
        pytest.param(setting(form=[]), "one of linear, mlp", id="a form that is no text"),
        pytest.param(setting(form=None), "and nothing else", id="no form"),
        pytest.param(setting(auto_map={}), "and nothing else", id="a setting nobody knows"),
        pytest.param(setting(dimension=True), "whole number", id="true as a dimension"),
        pytest.param(setting(dimension=10**9), "whole number from 1 to 16384", id="a dimension beyond all"),
        pytest.param(setting(dimension=D + 1), "does not fit", id="a dimension that isn't the weights'"),
        pytest.param(lambda folder: os.truncate(folder / WEIGHTS, 150), "header|cut short", id="torn weights"),
    ],
)
def test_a_folder_that_is_not_what_was_saved_is_refused(folder: Path, spoil: Any, says: str) -> None:
    spoil(folder)
    with pytest.raises(UnsafeFolderError, match=says):
        VectorAdapter.load(folder)


def test_a_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UnsafeFolderError, match="links are not followed"):
        VectorAdapter.load(tmp_path / "link")


def test_weights_of_the_other_form_are_refused(tmp_path: Path) -> None:
    for form in FORMS:
        trained(form).save(tmp_path / form)
    (tmp_path / "mlp" / CONFIG).write_bytes((tmp_path / "linear" / CONFIG).read_bytes())
    with pytest.raises(UnsafeFolderError, match="does not fit"):
        VectorAdapter.load(tmp_path / "mlp")
