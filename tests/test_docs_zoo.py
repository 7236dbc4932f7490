"""The page that puts all mixers side by side says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hybridlm.registry import mixers

PAGE = (Path(__file__).resolve().parents[1] / "docs/zoo.md").read_text(encoding="utf-8")
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
