import io

import pytest
from rich.console import Console

from service.demo.progress import clock, progress


def written(steps, *, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    with progress(console, "steps") as report:
        for step, total in steps:
            report(step, total, "loss 1.000")
    return out.getvalue()


def test_a_pipe_gets_a_line_every_tenth():
    lines = written([(step, 200) for step in range(1, 201)], terminal=False).splitlines()
    assert len(lines) == 11
    assert lines[0] == "   steps 1/200 (0 %)  loss 1.000"
    assert lines[-1] == "   steps 200/200 (100 %)  loss 1.000"


def test_a_pipe_gets_no_control_characters():
    text = written([(1, 3), (2, 3), (3, 3)], terminal=False)
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_a_restart_is_told():
    lines = written([(5, 10), (1, 10)], terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["5/10", "1/10"]


def test_a_terminal_gets_a_bar():
    assert "3/3" in written([(1, 3), (3, 3)], terminal=True)


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0:00"), (59.6, "1:00"), (75.2, "1:15"), (3600, "60:00")])
def test_clock(seconds, expected):
    assert clock(seconds) == expected
