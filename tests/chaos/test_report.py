"""What a run says at its end, whatever it was made of."""

import json
from collections import Counter
from pathlib import Path

from tests.chaos.controls import CONTROLS, ControlResult
from tests.chaos.faults import ROWS
from tests.chaos.findings import Figure, Finding
from tests.chaos.fleet import Shape
from tests.chaos.report import Report
from tests.chaos.seedrun import Verdict
from tests.chaos.storm import NUMBER as STORM


def _verdict(**changed: object) -> Verdict:
    fired = Counter({f"{row}. {next(iter(ROWS[row].kinds))}": 2 for row in ROWS})
    fired[f"{STORM}. 1. killed in a step"] = 3
    wanted = dict.fromkeys(ROWS, 2)
    return Verdict(**{"seed": 7, "shape": Shape(), "wanted": wanted, "fired": fired, "recoveries": [1.0], **changed})


def test_a_run_of_every_row_and_a_storm_is_told_and_left_in_files(tmp_path: Path) -> None:
    report = Report()
    report.add(_verdict())
    assert report.good
    text = report.text()
    assert f"{STORM}. storm: 1. killed in a step" in text
    assert f"{2 * len(ROWS) + 3}  in all" in text
    assert text.endswith("All zero.")
    report.write(tmp_path)
    assert json.loads((tmp_path / "chaos.json").read_text())["seeds"][0]["fired"][f"{STORM}. 1. killed in a step"] == 3
    assert "storm" in (tmp_path / "chaos.md").read_text()


def test_a_finding_a_row_that_did_not_fire_or_a_green_control_is_not_good() -> None:
    found = Report()
    found.add(_verdict(findings=[Finding(Figure.LOST, "ftjob-1", "is gone")]))
    short = Report()
    short.add(_verdict(wanted={1: 3}))
    green = Report(controls=[ControlResult(CONTROLS[0])])
    assert [report.good for report in (found, short, green)] == [False, False, False]
    assert "SHORT  row 1: 2 of 3 fired" in short.text()
    assert "ftjob-1" in found.text()
