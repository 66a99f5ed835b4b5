from __future__ import annotations

from pathlib import Path

import pytest

from encoders.errors import UnsafeFolderError
from workers.training.probe import Step, extrapolated, probe

BEFORE, LAST = Step(8, 100, 1.0, 1000), Step(16, 200, 1.5, 1200)


def test_a_whole_step_is_taken_as_it_was_measured() -> None:
    assert extrapolated(BEFORE, LAST, tokens=200) == LAST


def test_a_step_that_was_too_slow_is_continued_in_a_line() -> None:
    whole = extrapolated(BEFORE, LAST, tokens=400)
    assert (whole.seconds, whole.peak_bytes) == (2.5, 1600)


def test_of_one_step_everything_is_taken_in_proportion() -> None:
    whole = extrapolated(None, LAST, tokens=400)
    assert (whole.seconds, whole.peak_bytes) == (3.0, 2400)


def test_noise_never_makes_a_longer_step_faster() -> None:
    assert extrapolated(BEFORE, LAST._replace(seconds=0.5), tokens=400).seconds == 0.5


def test_real_steps_are_run_on_the_texts_given(tiny_folder: Path) -> None:
    measured = probe(tiny_folder, ["one text", "and another, which is longer"], texts_per_step=20)
    assert (measured["texts"], measured["steps"]) == (20, 3)
    assert measured["seconds"] > 0
    assert measured["peak_bytes"] > 1e6
    assert measured["device"]


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFolderError):
        probe(tmp_path, ["a text"], texts_per_step=8)
