"""Which mode is chosen: the fastest of those that agree, and the reference in doubt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from encoders.text import TextEncoder
from service.inference import modes
from service.inference.modes import Choice, ModeError, Runs, choose, confirm
from tests.encoders.tiny_encoder import write_tiny_encoder

SESSION = "onnxruntime-fp32"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_tiny_encoder(tmp_path_factory.mktemp("encoder")))


class _Clock:
    """Time that passes only while a mode computes, as much as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, torch: tuple[float, float], session: float) -> None:
        self.now = 0.0
        monkeypatch.setattr(modes.time, "perf_counter", lambda: self.now)
        self._slow(monkeypatch, TextEncoder, *torch)
        self._slow(monkeypatch, modes.Session, session, session)

    def _slow(self, monkeypatch: pytest.MonkeyPatch, kind: Any, single: float, several: float) -> None:
        embed = kind.embed

        def timed(this: Any, tokens: Sequence[np.ndarray]) -> np.ndarray:
            self.now += single if len(tokens) == 1 else several
            found: np.ndarray = embed(this, tokens)
            return found

        monkeypatch.setattr(kind, "embed", timed)


def test_the_fastest_is_chosen_for_a_single_text_and_for_several(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Clock(monkeypatch, torch=(3.0, 1.0), session=2.0)
    assert choose(Runs(encoder), None) == Choice(SESSION, "torch-fp32")


def test_what_is_hardly_faster_is_not_worth_a_change(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    _Clock(monkeypatch, torch=(2.0, 2.0), session=1.95)
    assert choose(Runs(encoder), None) == Choice("torch-fp32", "torch-fp32")


def test_what_is_known_of_an_architecture_is_confirmed_without_timing(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_fastest", lambda *_: pytest.fail("timed"))
    assert confirm(Runs(encoder), Choice(SESSION, "torch-fp32")) == Choice(SESSION, "torch-fp32")


def test_a_mode_that_can_not_be_made_here_is_refused_with_the_reason(encoder: TextEncoder) -> None:
    runs = Runs(encoder)
    if "torch-bf16" in modes.possible(encoder):
        pytest.skip("this machine has arithmetic for bfloat16")
    with pytest.raises(ModeError):
        runs["torch-bf16"]
    choice = choose(runs, "torch-bf16")
    assert (choice.single, choice.several) == ("torch-fp32", "torch-fp32")
    assert choice.refused[0][0] == "torch-bf16"


def test_without_onnxruntime_there_is_torch(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.session.find_spec", lambda _name: None)
    assert SESSION not in modes.possible(encoder)
