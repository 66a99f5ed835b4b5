"""The command line, as a person types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.settings import ServiceSettings
from tests.installation import Installation
from tests.processes import until

COMMANDS = [
    "up",
    "serve",
    "worker",
    "reconcile",
    "migrate",
    "verify",
    "inspect",
    "demo",
    "keys",
    "keys create",
    "keys list",
    "keys revoke",
]


def likeness(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real program, with its real exit code and whatever reaches a terminal."""
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_says_what_the_command_is_for(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert len(result.output.split()) > 25


def test_a_key_made_here_opens_the_api_until_it_is_revoked(installation: Installation) -> None:
    key = CliRunner().invoke(app, ["keys", "create", "robot"]).stdout.strip()
    as_robot = {"Authorization": f"Bearer {key}"}
    assert installation.request("GET", "/v1/models", headers=as_robot).status_code == 200

    listed = CliRunner().invoke(app, ["keys", "list"]).stdout
    assert "robot" in listed
    assert key not in listed

    key_id = next(word for line in listed.splitlines() if "robot" in line for word in line.split() if "key-" in word)
    assert CliRunner().invoke(app, ["keys", "revoke", key_id]).exit_code == 0
    until(lambda: installation.request("GET", "/v1/models", headers=as_robot).status_code == 401)


def test_revoking_an_unknown_key_says_so(settings: ServiceSettings) -> None:
    result = likeness("keys", "revoke", "key-nobody")
    assert result.returncode == 2
    assert "There is no key 'key-nobody'" in result.stderr


def test_migrating_again_changes_nothing(settings: ServiceSettings) -> None:
    results = [CliRunner().invoke(app, ["migrate"]) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    assert results[0].output == results[1].output


@pytest.mark.parametrize(
    "command", [("keys", "list"), ("migrate",), ("verify",), ("serve",), ("worker",), ("reconcile",)]
)
def test_without_servers_a_command_says_how_to_get_some(command: tuple[str, ...], tmp_path: Path) -> None:
    result = likeness(*command, "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert "likeness up --data-dir" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_named_without_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIKENESS_PORT", "eighty")
    result = likeness("up", "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert "port" in result.stderr
    assert "eighty" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_database_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret-word@127.0.0.1:9/nothing")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    result = likeness("migrate", "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert "can't be reached" in result.stderr
    assert "secret-word" not in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_an_unknown_queue_is_refused_with_those_there_are() -> None:
    result = likeness("worker", "--queue", "fast")
    assert result.returncode == 2
    assert "'gpu', 'cpu'" in result.stderr
