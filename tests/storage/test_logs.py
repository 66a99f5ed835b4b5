from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from storage.logs import configure_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_an_event_and_the_bound_ids(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", pretty=False)

    with structlog.contextvars.bound_contextvars(job="ftjob-1", attempt=2):
        structlog.get_logger("likeness").warning("lease_lost", reason="two\nlines")

    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "lease_lost", "level": "warning", "reason": "two\nlines", "job": "ftjob-1", "attempt": 2}


@pytest.mark.parametrize("pretty", [True, False])
def test_strangers_text_cannot_pass_for_a_line_of_its_own(pretty: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", pretty=pretty)

    structlog.get_logger("likeness").info("uploaded", filename='x\n{"event": "forged"}\r\x1b[2K\u2028forged\x85')

    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert "\x1b[2K" not in written


def test_other_libraries_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING", pretty=False)

    logging.getLogger("a.library").info("left out")
    logging.getLogger("a.library").error("Worker %s: quitting", "w-1")

    assert json.loads(capsys.readouterr().err)["event"] == "Worker w-1: quitting"


@pytest.mark.parametrize("pretty", [True, False])
def test_a_traceback_shows_no_values(pretty: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", pretty=pretty)

    def fail(somebodys_text: str) -> None:
        raise ValueError("no")

    try:
        fail("".join(["very ", "private"]))
    except ValueError:
        structlog.get_logger("likeness").exception("crashed")

    written = capsys.readouterr().err
    assert "ValueError: no" in written
    assert "very private" not in written
