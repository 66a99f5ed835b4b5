"""What tests want to know of a page of documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: Every page a reader may land on.
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def code_blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks in a language."""
    return [content for named, content in _BLOCK.findall(page.read_text()) if named == language]


def inline_code(page: Path) -> list[str]:
    """The page's `code` within sentences."""
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page.read_text()))


def relative_links(page: Path) -> list[Path]:
    """The files and folders that the page links to or shows, wherever they ought to be."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", _BLOCK.sub("", page.read_text()))
    return [page.parent / target for target in targets if "://" not in target]


def commands(page: Path) -> list[str]:
    """The command lines that the page tells a reader to type, without their comments."""
    lines = [line for block in code_blocks(page, "sh") for line in block.splitlines()]
    return [command for line in [*lines, *inline_code(page)] if (command := line.partition(" #")[0].strip())]
