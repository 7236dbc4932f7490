"""The page on signals: its model is the shipped one, its example runs, its picture and its table can be made again."""

from __future__ import annotations

import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hybridlm as hl
from hybridlm.resources import config_path
from hybridlm.train import signals

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs/pictures/signals.py"
TEXT = (ROOT / "docs/signals.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return found


def test_the_example_is_the_shipped_model():
    assert yaml.safe_load(_block("yaml")) == yaml.safe_load(config_path("models/signals").read_text(encoding="utf-8"))


def test_example_of_the_page(tmp_path, monkeypatch):
    hl.save(hl.build(yaml.safe_load(_block("yaml")), seed=0), tmp_path / "runs/signals/0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signals, "SignalData", functools.partial(signals.SignalData, held_out=16))
    found: dict = {}
    exec(_block("python"), found)
    assert 0 <= found["without"] <= 1
    assert 0 <= found["told"] <= 1
    assert found["model"].spec.blocks["s4d"]["mixer"]["time_scale"] == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the picture, and what the script printed."""
    folder = tmp_path_factory.mktemp("pictures")
    done = subprocess.run([sys.executable, "-W", "error", SCRIPT, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_picture_is_that_of_the_page(made):
    names = re.findall(r"\]\(pictures/([\w-]+\.svg)\)", TEXT)
    assert sorted(path.name for path in made[0].iterdir()) == names
    for name in names:
        new, shipped = (path.read_text(encoding="utf-8") for path in (made[0] / name, SCRIPT.parent / name))
        assert new.count("<path") == shipped.count("<path")
        assert abs(len(new) - len(shipped)) < 0.02 * len(shipped)  # digits may differ on another processor


def _rows(table: str) -> list[list[float]]:
    return [[float(cell) for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_table_is_what_the_script_prints(made):
    (shown,) = re.findall(r"^\| full rate .*\n(?:\|.*\n)+", TEXT, re.MULTILINE)
    assert _rows(shown) == [pytest.approx(row, rel=0.05) for row in _rows(made[1])]


def test_the_difference_falls_with_the_step_where_the_model_is_told():
    """At the highest rate a tenth of what it is at the lowest; untold, it stays."""
    script = runpy.run_path(str(SCRIPT))
    rows = {name: script["error"](script["model"](name), 100) for name in script["COLOURS"]}
    finest = {name: script["error"](script["model"](name), 1600) for name in script["COLOURS"]}
    assert all(finest[name] < 0.1 * rows[name] for name in rows)
    assert script["error"](script["model"]("s4d"), 1600, told=False) > 0.3
