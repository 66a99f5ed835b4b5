"""What the README says works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from api_schemas.methods import Method
from tests import command_line
from tests.installation import Installation
from tests.markdown import PAGES, ROOT, code_blocks, commands

README = ROOT / "README.md"
BASE = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_python_script_runs_as_it_is(installation: Installation, tmp_path: Path) -> None:
    rows = next(block for block in code_blocks(README, "sh") if "pages.jsonl" in block)
    subprocess.run(["bash", "-euc", rows], cwd=tmp_path, check=True)
    client = {"OPENAI_BASE_URL": f"{installation.url}/v1", "OPENAI_API_KEY": installation.key}
    (tmp_path / "script.py").write_text(code_blocks(README, "python")[0])
    with installation.worker("cpu"), installation.worker("gpu"):
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={**os.environ, **client},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert before.startswith(f"{BASE}: ")
    assert after.startswith(f"ft:{BASE}:default::")
    # What the README says of it: the right page moves closer, another away.
    (right_before, wrong_before), (right_after, wrong_after) = map(_cosines, (before, after))
    assert right_before < right_after
    assert wrong_before > wrong_after


def test_the_method_shown_is_one_that_the_api_takes() -> None:
    names: dict[str, dict[str, object]] = {}
    exec(code_blocks(README, "python")[1], names)
    assert Method(**names["method"]).contrastive.hyperparameters.n_epochs == 3


def test_the_environment_variables_of_the_clients_are_set_before_the_script() -> None:
    text = README.read_text()
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        assert text.index(f"export {name}=") < text.index("```python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_likeness_command_exists_with_its_options(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if "likeness" in words:
            command_line.parse(words[words.index("likeness") + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in commands(page):
        if command.startswith("make "):
            assert command.split()[1] in targets, command


def test_the_commands_of_the_command_line_are_all_there() -> None:
    shown = {words[1] for words in map(shlex.split, commands(README)) if words[0] == "likeness" and len(words) > 1}
    registered = {command.name or command.callback.__name__ for command in command_line.app.registered_commands}
    assert registered | {"keys"} == shown


def _cosines(line: str) -> tuple[float, float]:
    right, wrong = re.findall(r"-?\d\.\d\d", line)
    return float(right), float(wrong)
