"""What the running Python's standard library documents: names and docstrings, in a fixed order.

Python sources are parsed and never run; only modules written in C, which have no source, are imported.
"""

import ast
import importlib
import importlib.machinery
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

#: Jokes, tests, programs and other people's code: nothing anybody looks up by its docstring.
SKIPPED_MODULES = frozenset({"antigravity", "this", "idlelib", "turtledemo", "test", "lib2to3", "ensurepip"})
#: Example code, and two that reach for the terminal or the display when imported.
SKIPPED_C_MODULES = frozenset({"xxlimited", "xxlimited_35", "xxsubtype", "readline", "_tkinter"})
SKIPPED_PARTS = frozenset({"__main__", "test", "tests", "idle_test", "__pycache__", "site-packages"})

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS = (ast.If, ast.Try, ast.With)
_C_TYPES = (type, types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType)


class Documented(NamedTuple):
    """Something public that has a docstring of its own."""

    name: str
    docstring: str

    @property
    def module(self) -> str:
        """Its top-level module."""
        return self.name.partition(".")[0]


def standard_library() -> Iterator[Documented]:
    """Everything public and documented, in the order of the modules' names."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - SKIPPED_MODULES):
        if not module.startswith("_"):
            yield from _of_module(module, folder)


def _of_module(module: str, folder: Path) -> Iterator[Documented]:
    for source in _sources(module, folder):
        yield from _of_source(source, _module_name(source.relative_to(folder)))
    # What `io` or `sqlite3` offer is written in `_io` and `_sqlite3`.
    for written_in_c in (module, f"_{module}"):
        yield from _of_members(_c_members(written_in_c), module, depth=2)


def _sources(module: str, folder: Path) -> list[Path]:
    """A module's Python files: its own, or all of its package."""
    single = folder / f"{module}.py"
    if single.is_file():
        return [single]
    return sorted(path for path in (folder / module).rglob("*.py") if _is_public(path.relative_to(folder)))


def _is_public(path: Path) -> bool:
    parts = path.with_suffix("").parts
    hidden = (part.startswith("_") and part != "__init__" for part in parts)
    return not any(hidden) and SKIPPED_PARTS.isdisjoint(parts)


def _module_name(path: Path) -> str:
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def _of_source(path: Path, module: str) -> Iterator[Documented]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are not ours to report
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file of another Python, or not meant to be run
            return
    yield from _of_body(tree.body, module)


def _of_body(body: Iterable[ast.stmt], prefix: str) -> Iterator[Documented]:
    """Definitions of a module or class; those under an `if` or `try` count as its own."""
    for node in body:
        if isinstance(node, _BLOCKS):
            yield from _of_body((item for item in ast.iter_child_nodes(node) if isinstance(item, ast.stmt)), prefix)
        elif isinstance(node, _DEFINITIONS) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            docstring = ast.get_docstring(node)
            if docstring:
                yield Documented(name, docstring)
            if isinstance(node, ast.ClassDef):
                yield from _of_body(node.body, name)


def _c_members(module: str) -> dict[str, object]:
    """The members of a module written in C; none if it has a source, or is not on this machine."""
    if module in SKIPPED_C_MODULES or not _is_written_in_c(module):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules say so when imported
        try:
            return vars(importlib.import_module(module))
        except ImportError:  # a library it needs is missing
            return {}


def _is_written_in_c(module: str) -> bool:
    if module in sys.builtin_module_names:
        return True
    spec = importlib.machinery.PathFinder.find_spec(module)
    return spec is not None and isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)


def _of_members(members: Mapping[str, object], prefix: str, depth: int) -> Iterator[Documented]:
    """Functions and classes written in C, and the methods those classes define themselves."""
    for name, member in sorted(members.items()):
        # An alias (IOError is OSError) has another name than its own; so has what somebody hooked in.
        if name.startswith("_") or not isinstance(member, _C_TYPES) or member.__name__ != name:
            continue
        if isinstance(member.__doc__, str):
            yield Documented(f"{prefix}.{name}", member.__doc__)
        if isinstance(member, type) and depth > 1:
            yield from _of_members(vars(member), f"{prefix}.{name}", depth - 1)
