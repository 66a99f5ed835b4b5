"""What review would otherwise have to say again and again."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api_schemas", "storage", "encoders", "workers", "service")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What others than storage may know of SQLAlchemy: a session to hand on, and exceptions to catch.
ALLOWED_OF_SQLALCHEMY = {("sqlalchemy.orm", "Session")}
# The parts of the product that must run without torch, and without what comes with it.
WITHOUT_TORCH = (
    "api_schemas.jobs",
    "storage.jobs",
    "encoders.registry",
    "service.cli",
    "service.serve",
    "service.routes.files",
    "workers.worker",
    "workers.reconciler",
)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of everything imported; the name is empty for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def _by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in SOURCES if "storage" not in path.parts], ids=_by_name)
def test_sql_is_in_storage_only(path: Path) -> None:
    for module, name in _imports(_tree(path)):
        if module.partition(".")[0] in ("sqlalchemy", "psycopg", "alembic"):
            assert module == "sqlalchemy.exc" or (module, name) in ALLOWED_OF_SQLALCHEMY, f"{module} {name}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_is_imported_only_where_it_is_needed(module: str) -> None:
    heavy = ("torch", "numpy", "tokenizers", "safetensors", "transformers")
    program = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES, ids=_by_name)
def test_a_file_is_named_after_what_is_in_it(path: Path) -> None:
    names = {path.stem, *path.parent.parts}
    assert names.isdisjoint({"util", "utils", "helper", "helpers", "common", "misc", "shared", "base_utils"})


@pytest.mark.parametrize("path", SOURCES, ids=_by_name)
def test_nothing_is_run_that_came_as_data(path: Path) -> None:
    tree = _tree(path)
    runs_data = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not [module for module, _ in _imports(tree) if module.partition(".")[0] in runs_data]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        assert name not in ("torch.load", "eval", "exec", "os.system", "os.popen"), f"line {call.lineno}: {name}"
        shell = [keyword for keyword in call.keywords if keyword.arg == "shell"]
        assert not shell, f"line {call.lineno}: a shell"


@pytest.mark.parametrize("path", SOURCES, ids=_by_name)
def test_every_function_says_what_it_returns(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.returns is not None, f"line {node.lineno}: {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=_by_name)
def test_a_module_begins_by_saying_what_it_is(path: Path) -> None:
    assert path.stat().st_size == 0 or ast.get_docstring(_tree(path)), "no docstring"


def test_every_package_is_typed() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists() or package == "api_schemas", package
