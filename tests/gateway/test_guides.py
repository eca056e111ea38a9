"""The guides: what is to be pasted is whole, and what is linked is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = sorted(GUIDES.glob("*.md"))
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_are_programs_of_their_own(page: Path) -> None:
    """Each stands alone: what it uses it imports, and the key comes from the environment."""
    for language, text in _BLOCK.findall(page.read_text()):
        if language == "python":
            tree = ast.parse(text)
            assert any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body), text
            assert 'os.environ["STOKEHOLD_KEY"]' in text, text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_guide_is_in_the_index() -> None:
    index = (GUIDES / "README.md").read_text()
    assert [page.name for page in PAGES if page.stem != "README" and f"]({page.name})" not in index] == []
