"""The pages that put all mixers side by side, the zoo and State, say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybridlm.registry import mixers

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8")
ROW = r"^\| \[(\w+)\]\(mixers/\1\.md\) \| `(\w)` \| .+ \| ([\d.]+) \| (\d+) \| (\d+) \|$"
ROWS = {name: cells for name, *cells in re.findall(ROW, PAGE, re.MULTILINE)}
BUILT_IN = [row.name for row in mixers.listing() if row.source == "hybridlm"]


def test_every_mixer_has_a_row_in_the_order_of_the_registry():
    assert list(ROWS) == BUILT_IN
    assert f"{len(BUILT_IN)} mixers" in PAGE.replace("Sixteen", "16")


@pytest.mark.parametrize("name", BUILT_IN)
def test_row(name):
    part = mixers.get(name)
    cost = part.cost(part.Config().resolve(1024), 1024)
    kib = [round(cost.state(length, 2).total / 1024) for length in (4096, 131_072)]
    assert ROWS[name] == [part.letter, f"{cost.parameters / 1024**2:.2f}", *map(str, kib)]


def test_the_page_on_states_says_of_every_mixer_whether_it_grows_and_rolls_back():
    page = (DOCS / "state.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9_, ]+) \| .+ \| (.+) \| (yes|no) \|$", page, re.MULTILINE)
    said = {
        name: (size == "grows to max_length", back == "yes") for names, size, back in rows for name in names.split(", ")
    }
    assert said == {name: (_grows(mixers.get(name)), mixers.get(name).rolls_back) for name in BUILT_IN}


def _grows(part: type) -> bool:
    state = part.cost(part.Config().resolve(1024), 1024).state
    return state(131_072, 2).total > state(65_536, 2).total
