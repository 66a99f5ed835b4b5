from pathlib import Path

import pytest

from service.demo import library
from service.demo.library import standard_library

SOURCE = '''
"""The module's own."""
raise SystemExit("parsed, never run")

def public():
    """Says something."""
    def inner():
        """Nobody can reach this."""

def _private():
    """Not for others."""

if True:
    class Conditional:
        """Under an if."""

        def method(self):
            """Of a class."""

        def undocumented(self): ...
'''


def test_reads_public_definitions_without_running_them(tmp_path: Path, monkeypatch):
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "__init__.py").write_text(SOURCE)
    (tmp_path / "wave" / "__main__.py").write_text(SOURCE)
    (tmp_path / "wave" / "broken.py").write_text("def (")
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(library.sys, "stdlib_module_names", frozenset({"wave"}))
    assert list(standard_library()) == [
        ("wave.public", "Says something."),
        ("wave.Conditional", "Under an if."),
        ("wave.Conditional.method", "Of a class."),
    ]


@pytest.fixture(scope="module")
def names() -> set[str]:
    return {item.name for item in standard_library()}


def test_methods_are_those_a_class_defines_itself(names):
    assert "builtins.dict.fromkeys" in names
    assert "builtins.bool.bit_length" not in names  # inherited from int


def test_aliases_are_left_out(names):
    assert "builtins.OSError" in names
    assert "builtins.IOError" not in names
