"""The documentation and the code say the same."""

import json
import re
from pathlib import Path

import pytest

from api_schemas.errors import ERROR_CODES, LikenessError
from api_schemas.methods import Method, ModelOptions, ScratchOptions
from api_schemas.similarity import SimilarityRequest
from docs import generate
from tests.markdown import PAGES, ROOT, code_blocks, inline_code, relative_links
from workers.data.validation import validate

DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


@pytest.mark.parametrize(("page", "expected"), generate.pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_generated_tables_equal_the_code(page: Path, expected: str) -> None:
    assert page.read_text() == expected, f"{page.name} and the code differ: run `make docs`"


def test_every_error_code_is_in_the_table_once() -> None:
    shown = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "errors.md").read_text(), flags=re.MULTILINE)
    assert shown == list(ERROR_CODES)


def test_the_error_shown_is_what_the_service_answers() -> None:
    shown = json.loads(code_blocks(ROOT / "docs" / "errors.md", "json")[0])
    error = LikenessError(shown["error"]["code"], shown["error"]["message"], param=shown["error"]["param"])
    assert error.body(shown["request_id"]) == shown


def test_the_model_options_shown_are_accepted() -> None:
    scratch, lora = (ModelOptions(**json.loads(shown)) for shown in code_blocks(ROOT / "docs" / "encoders.md", "json"))
    assert lora.train == "lora"
    assert scratch.scratch == ScratchOptions(), "what is shown is what there is without it"


def test_the_comparisons_shown_are_accepted() -> None:
    shown = [SimilarityRequest(**json.loads(body)) for body in code_blocks(ROOT / "docs" / "serving.md", "json")]
    assert [request.metric for request in shown] == ["cosine", "cosine", "cosine", "dot"]


def test_the_formats_shown_are_accepted(tmp_path: Path) -> None:
    formats = []
    for rows in code_blocks(ROOT / "docs" / "data.md", "json"):
        if '"contrastive"' in rows:
            assert not Method(**json.loads(rows)).contrastive.data.as_uploaded
            continue
        path = tmp_path / "rows.jsonl"
        path.write_text(rows)
        report = validate(path)
        assert report.usable, report.summary
        formats.append(report.format)
    assert formats == ["pairs", "triplets", "scored_pairs", "labels", "views", "texts", "vectors", "vector_pairs"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in relative_links(page):
        assert target.exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_exists(page: Path) -> None:
    for name in inline_code(page):
        if re.fullmatch(r"(?:api_schemas|storage|encoders|workers|service|docs|docker|tests)/[\w./-]*", name):
            # The one file that a reader makes.
            assert (ROOT / name).exists() or name == "docker/.env", name


def test_every_test_that_is_named_exists() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = {name for page in PAGES for name in inline_code(page) if re.fullmatch(r"test_\w+", name)}
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_parts_and_fits_a_page(page: Path) -> None:
    text = page.read_text()
    parts = re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)
    assert parts == ["Context", "Decision", "Alternatives", "Consequences", "Files"]
    assert len(text.splitlines()) <= 50
    assert int(re.match(r"# (\d+)\.", text)[1]) == int(page.stem[:4])


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
