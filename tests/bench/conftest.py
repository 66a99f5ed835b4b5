"""The whole standard library takes seconds to read: here benchmarks read a part of it, but for stages of their own."""

import sys
from collections.abc import Iterator

import pytest

from service.demo import library

#: Modules of the standard library with names and docstrings of all lengths.
_KEPT = {
    "argparse", "ast", "asyncio", "builtins", "collections", "concurrent", "ctypes", "datetime", "decimal", "email",
    "fractions", "http", "io", "json", "logging", "math", "multiprocessing", "os", "pathlib", "random", "statistics",
    "string", "subprocess", "threading", "tkinter", "turtle", "typing", "unittest", "urllib", "xml", "zipfile",
}  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def _part_of_the_library() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "SKIPPED_MODULES", library.SKIPPED_MODULES | (sys.stdlib_module_names - _KEPT))
        yield
