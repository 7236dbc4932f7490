"""Reports of synthetic studies, each written once for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import synthetic


@pytest.fixture(scope="session")
def results():
    """{name: results}."""
    return {name: getattr(synthetic, name)() for name in ("recall", "curves", "hostile")}


@pytest.fixture(scope="session")
def reports(results, tmp_path_factory):
    """{name: folder of a written report}."""
    from hybridlm.ablate.report import write

    folders = {name: tmp_path_factory.mktemp(name) for name in results}
    for name, folder in folders.items():
        assert write(results[name], folder) == folder / "report.html"
    return folders
