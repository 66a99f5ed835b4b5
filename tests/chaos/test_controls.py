from __future__ import annotations

from tests.chaos.controls import Control, ControlResult
from tests.chaos.findings import Figure, Finding

CONTROL = Control("fencing", {3: ["stopped alone"], 9: ["of a success"]}, frozenset({Figure.DOUBLED}))
FOUND = [Finding(Figure.DOUBLED, "ftjob-1", "two models")]


def test_a_control_is_red_when_every_row_that_could_be_run_is() -> None:
    assert ControlResult(CONTROL, {3: FOUND, 9: FOUND}).red
    assert not ControlResult(CONTROL, {3: FOUND, 9: []}).red
    assert ControlResult(CONTROL, {3: FOUND}, not_run={9: "no strace"}).red


def test_a_control_that_showed_nothing_is_not_red() -> None:
    assert not ControlResult(CONTROL, {3: FOUND, 9: FOUND}, missed={9: "no fault came to pass"}).red
    assert not ControlResult(CONTROL, not_run={3: "no strace", 9: "no strace"}).red
    assert (
        ControlResult(CONTROL, missed={9: "no fault came to pass"})
        .lines()[1]
        .endswith("NOT SHOWN, no fault came to pass")
    )
