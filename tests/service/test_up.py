"""`likeness up`: everything on one machine, kept over stops, and nothing left behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from service.up import is_ready as api_is_ready
from tests.installation import PAIRS, TINY, processes_of
from tests.processes import until

# What may pass before something that must happen is declared not to.
DEADLINE_SECONDS = 120.0


@contextmanager
def likeness_up(data_dir: Path, base_models_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A ready `likeness up` on a free port; killed on the way out if the test hasn't stopped it."""
    command = [sys.executable, "-m", "service", "up", "--data-dir", str(data_dir), "--port", "0"]
    env = {**os.environ, "LIKENESS_BASE_MODELS_DIR": str(base_models_dir)}
    with (data_dir.parent / "up.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or is_ready(data_dir))
        assert process.poll() is None, (data_dir.parent / "up.log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(data_dir: Path) -> bool:
    try:
        api_url = json.loads((data_dir / "running.json").read_text())["api_url"]
    except (FileNotFoundError, ValueError):
        return False
    return api_is_ready(api_url)


def client(data_dir: Path) -> OpenAI:
    api_url = json.loads((data_dir / "running.json").read_text())["api_url"]
    return OpenAI(base_url=f"{api_url}/v1", api_key=(data_dir / "admin.key").read_text().strip())


def upload(openai: OpenAI) -> str:
    content = "\n".join(map(json.dumps, PAIRS)).encode()
    file = openai.files.create(file=("words.jsonl", content), purpose="fine-tune")
    return openai.files.wait_for_processing(file.id, poll_interval=0.1).id


def start_job(openai: OpenAI, file_id: str, max_steps: int) -> Any:
    hyperparameters = {"max_steps": max_steps, "batch_size": 8, "n_epochs": 1000}
    method: Any = {"type": "contrastive", "contrastive": {"hyperparameters": hyperparameters}}
    return openai.fine_tuning.jobs.create(model=TINY, training_file=file_id, method=method)


def status_of(openai: OpenAI, job_id: str) -> str:
    return openai.fine_tuning.jobs.retrieve(job_id).status


def stop(process: subprocess.Popen[bytes], data_dir: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_SECONDS) == 0
    assert processes_of(data_dir) == []


def test_a_stop_in_the_middle_of_a_training_loses_nothing(tmp_path: Path, base_models_dir: Path) -> None:
    data_dir = tmp_path / "data"
    with likeness_up(data_dir, base_models_dir) as process:
        openai = client(data_dir)
        file_id = upload(openai)
        finished = start_job(openai, file_id, max_steps=2)
        until(lambda: status_of(openai, finished.id) == "succeeded")
        model = openai.fine_tuning.jobs.retrieve(finished.id).fine_tuned_model
        assert model is not None
        before = openai.embeddings.create(model=model, input="kept").data[0].embedding
        unfinished = start_job(openai, file_id, max_steps=2000)
        until(lambda: openai.fine_tuning.jobs.retrieve(unfinished.id).to_dict()["progress"])
        stop(process, data_dir)

    with likeness_up(data_dir, base_models_dir) as process:
        openai = client(data_dir)
        assert openai.files.retrieve(file_id).status == "processed"
        assert next(iter(openai.models.list())).id == model
        # Another mode may compute it now, which rounds otherwise.
        assert openai.embeddings.create(model=model, input="kept").data[0].embedding == pytest.approx(before, abs=1e-6)
        assert status_of(openai, finished.id) == "succeeded"
        job = openai.fine_tuning.jobs.retrieve(unfinished.id)
        assert (job.status, job.to_dict()["attempt"]) in [("queued", 2), ("running", 2)]
        messages = [event.message for event in openai.fine_tuning.jobs.list_events(unfinished.id, limit=100)]
        assert any("shutting down" in message for message in messages)
        until(lambda: status_of(openai, unfinished.id) == "running")
        assert openai.fine_tuning.jobs.cancel(unfinished.id).status == "cancelled"
        stop(process, data_dir)


def test_its_key_is_its_owners_alone_a_second_one_is_refused_and_its_children_are_started_again_but_never_outlive_it(
    tmp_path: Path, base_models_dir: Path
) -> None:
    data_dir = tmp_path / "data"
    with likeness_up(data_dir, base_models_dir) as process:
        key_file = data_dir / "admin.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE((data_dir / "running.json").stat().st_mode) == 0o600
        assert len(processes_of(data_dir)) > 5
        assert not any(key_file.read_text().strip() in command for command in processes_of(data_dir))

        second = subprocess.run(
            [sys.executable, "-m", "service", "up", "--data-dir", str(data_dir), "--port", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert f"pid {process.pid}" in second.stderr.replace("\n", " ")
        assert is_ready(data_dir)

        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        api = next(pid for pid in children.read_text().split() if "service.serve" in command_of(pid))
        os.kill(int(api), signal.SIGKILL)
        until(lambda: not Path(f"/proc/{api}").exists())
        until(lambda: is_ready(data_dir))
        process.kill()
        process.wait()
        until(lambda: processes_of(data_dir) == [])


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path, taken_port: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service", "up", "--data-dir", str(tmp_path / "data"), "--port", str(taken_port)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert f"Can't listen on 127.0.0.1:{taken_port}" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def command_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
