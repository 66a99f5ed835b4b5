"""`likeness verify`, as an operator types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from encoders.errors import ChecksumError
from service.cli import app
from tests.installation import PAIRS, Installation


def verify() -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def model(installation: Installation) -> tuple[str, Path]:
    job = installation.create_job(installation.upload(PAIRS))
    return installation.publish(job), installation.settings.artifacts_dir / "models" / f"{job.id}-1"


def test_an_installation_in_which_all_is_well(model: tuple[str, Path]) -> None:
    code, output = verify()

    assert code == 0
    assert output.endswith("Looked at 1 file, 1 model: all is well.\n")


def test_after_a_disk_scare_it_says_what_is_damaged_and_what_to_do(
    installation: Installation, model: tuple[str, Path]
) -> None:
    name, folder = model
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000] + bytes(1000) + content[2000:])
    [file] = (installation.settings.artifacts_dir / "files").iterdir()
    rows = file.read_bytes()
    file.write_bytes(b"")

    code, output = verify()

    assert code == 1
    assert f"model {name}: model.safetensors differs from its checksum\n    It is not served. Restore " in output
    assert f"artifacts/models/{folder.name}" in output
    assert f"file {file.name}: has 0 bytes instead of {len(rows)}" in output
    assert "2 damaged" in output
    refusal = installation.request("POST", "/v1/embeddings", json={"model": name, "input": "a"})
    assert refusal.json()["error"]["code"] == "artifact_corrupt"

    weights.write_bytes(content)
    file.write_bytes(rows)

    assert verify()[0] == 0
    assert installation.request("POST", "/v1/embeddings", json={"model": name, "input": "a"}).status_code == 200


def test_base_weights_that_are_not_those_promised_are_named(
    installation: Installation, base_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.registry.verify_weights", _differs)

    code, output = verify()

    assert code == 1
    assert "base model sentence-transformers/all-MiniLM-L6-v2: " in output
    assert "Install its weights again." in output


def _differs(_folder: Path, _sha256: str) -> None:
    raise ChecksumError("the weights differ")
