"""Change a module of the product in the moment it is imported, so that nothing is imported for the change's sake."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CHANGES: dict[str, list[Callable[[ModuleType], None]]] = {}


def when_imported(module: str, change: Callable[[ModuleType], None]) -> None:
    """Call `change` with the module once it has been executed."""
    if not _CHANGES:
        sys.meta_path.insert(0, _Finder())
    _CHANGES.setdefault(module, []).append(change)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace `owner.name` by `around(original, *arguments)`. Raises AttributeError when there is no such name."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        return around(original, *arguments, **named)

    setattr(owner, name, wrapped)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self._looking_for: set[str] = set()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname not in _CHANGES or fullname in self._looking_for:
            return None
        self._looking_for.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking_for.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ChangingLoader(spec.loader, _CHANGES[fullname])
        return spec


class _ChangingLoader(Loader):
    def __init__(self, loader: Loader, changes: list[Callable[[ModuleType], None]]) -> None:
        self._loader = loader
        self._changes = changes

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for change in self._changes:
            change(module)

    def __getattr__(self, name: str) -> Any:  # what runpy and inspect ask a loader for
        return getattr(self._loader, name)
