from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from storage.settings import NoServersError, StorageSettings

RUNNING = {"database_url": "postgresql://here", "redis_url": "unix:///here", "api_url": "http://here"}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tell_running(settings: StorageSettings, **running: object) -> None:
    settings.data_dir.mkdir(exist_ok=True)
    settings.running_file.write_text(json.dumps({**RUNNING, **running}))


def test_urls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@host/name")
    monkeypatch.setenv("REDIS_URL", "redis://host")

    settings = StorageSettings().with_running_servers()

    assert settings.required_database_url == "postgresql://user:secret@host/name"
    assert settings.required_redis_url == "redis://host"


@pytest.mark.parametrize(("given", "taken"), [(None, "auto"), ("auto", "auto"), ("4", 4)])
def test_a_training_has_as_many_processes_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, given: str | None, taken: int | str
) -> None:
    if given is not None:
        monkeypatch.setenv("LIKENESS_TRAINING_PROCESSES", given)

    assert StorageSettings().training_processes == taken


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "all", ""])
def test_any_other_number_of_processes_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("LIKENESS_TRAINING_PROCESSES", given)

    with pytest.raises(ValidationError, match=r"training_processes\n.*auto, or a number from 1 on"):
        StorageSettings()


def test_a_password_is_not_printed() -> None:
    settings = StorageSettings(database_url=SecretStr("postgresql://user:secret@host/name"))

    assert "secret" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"


def test_without_servers_the_reason_says_what_to_do(tmp_path: Path) -> None:
    settings = StorageSettings(data_dir=tmp_path / "nothing")

    for ask in (settings.with_running_servers, lambda: settings.required_redis_url):
        with pytest.raises(NoServersError, match=r"set DATABASE_URL and REDIS_URL.*likeness up --data-dir .*nothing"):
            ask()


def test_urls_come_from_whatever_runs_on_the_data_directory(tmp_path: Path) -> None:
    settings = StorageSettings(data_dir=tmp_path)
    tell_running(settings, pid=os.getpid())

    assert settings.with_running_servers().required_database_url == RUNNING["database_url"]
    assert settings.with_running_servers().required_redis_url == RUNNING["redis_url"]


def test_a_url_that_is_given_is_kept(tmp_path: Path) -> None:
    settings = StorageSettings(data_dir=tmp_path, redis_url=SecretStr("redis://elsewhere"))
    tell_running(settings, pid=os.getpid())

    settings = settings.with_running_servers()

    assert settings.required_database_url == RUNNING["database_url"]
    assert settings.required_redis_url == "redis://elsewhere"


def test_what_a_killed_installation_left_behind_is_not_taken_for_running(tmp_path: Path) -> None:
    settings = StorageSettings(data_dir=tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    tell_running(settings, pid=ended.pid)

    with pytest.raises(NoServersError):
        settings.with_running_servers()


def test_a_file_that_is_only_half_written_is_not_taken_for_running(tmp_path: Path) -> None:
    settings = StorageSettings(data_dir=tmp_path)
    settings.running_file.write_text('{"pid": ')

    with pytest.raises(NoServersError):
        settings.with_running_servers()
