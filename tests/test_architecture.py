"""What review would otherwise have to say again and again."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api_schemas", "storage", "encoders", "workers", "service")
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(), filename=str(path))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

# The parts of the product that must run without torch, and without what comes with it.
WITHOUT_TORCH = (
    "api_schemas.jobs",
    "storage.attempts",
    "storage.jobs",
    "encoders.registry",
    "service.cli",
    "service.serve",
    "service.routes.files",
    "workers.worker",
    "workers.reconciler",
)
# Readers that run what they read.
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"torch.load", "eval", "exec", "os.system", "os.popen"}


def test_sql_is_in_storage_only() -> None:
    strays = [
        f"{path}: {module} {name}"
        for path, tree in TREES.items()
        for module, name in _imports(tree)
        if path.parts[0] != "storage" and _is_sql(module, name)
    ]
    assert strays == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_is_imported_only_where_it_is_needed(module: str) -> None:
    heavy = ("torch", "numpy", "tokenizers", "safetensors", "transformers")
    program = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["workers.validating", "workers.preparing"])
def test_files_are_read_and_tokenized_without_torch(module: str) -> None:
    heavy = ("torch", "safetensors", "transformers")
    program = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [path for path in TREES if drawers & {path.stem, *path.parts}] == []


def test_nothing_that_came_as_data_is_run() -> None:
    strays = [
        f"{path}: {module}"
        for path, tree in TREES.items()
        for module, _ in _imports(tree)
        if _package(module) in PICKLES
    ]
    strays += [
        f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _runs_text(node)
    ]
    assert strays == []


def test_every_function_says_what_it_returns() -> None:
    silent = [
        f"{path}:{node.lineno}: {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is None
    ]
    assert silent == []


def test_every_module_begins_by_saying_what_it_is() -> None:
    assert [path for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def test_every_package_tells_type_checkers_that_it_is_typed() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of everything imported; the name is empty for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_sql(module: str, name: str) -> bool:
    """Anything of the database's libraries but a session to hand on and exceptions to catch."""
    if _package(module) not in ("sqlalchemy", "psycopg", "alembic"):
        return False
    return module != "sqlalchemy.exc" and (module, name) != ("sqlalchemy.orm", "Session")


def _runs_text(call: ast.Call) -> bool:
    """Whether a call runs a string as code, opens a pickle, or hands a string to a shell."""
    return ast.unparse(call.func) in RUNS_TEXT or any(keyword.arg == "shell" for keyword in call.keywords)
