"""The page on HiPPO: its pictures can be made again, its table is what the code computes, its example runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs/pictures/hippo.py"
TEXT = (ROOT / "docs/hippo.md").read_text(encoding="utf-8")
NAMES = sorted(re.findall(r"\]\(pictures/([\w-]+\.svg)\)", TEXT))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the pictures, and what the script printed."""
    folder = tmp_path_factory.mktemp("pictures")
    done = subprocess.run([sys.executable, "-W", "error", SCRIPT, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_pictures_are_those_of_the_page(made):
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    for name in NAMES:
        new, shipped = (path.read_text(encoding="utf-8") for path in (folder / name, SCRIPT.parent / name))
        assert len(shipped) < 150_000
        assert new.count("<path") == shipped.count("<path")
        assert abs(len(new) - len(shipped)) < 0.02 * len(shipped)  # digits may differ on another processor


def test_pictures_are_the_same_every_time(made, tmp_path):
    import matplotlib as mpl

    script = runpy.run_path(str(SCRIPT))
    with mpl.rc_context(script["STYLE"]):
        script["PICTURES"]["hippo-basis"]().savefig(tmp_path / "again.svg", metadata={"Date": None})
    assert (tmp_path / "again.svg").read_bytes() == (made[0] / "hippo-basis.svg").read_bytes()


def _rows(table: str) -> list[list[float]]:
    return [[float(cell) for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_table_is_what_the_script_prints(made):
    (shown,) = re.findall(r"^\| n \| zoh \| bilinear \|\n(?:\|.*\n)+", TEXT, re.MULTILINE)
    assert _rows(shown) == [pytest.approx(row, rel=0.05) for row in _rows(made[1])]


def test_example_of_the_page(capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    found: dict = {}
    exec(example, found)
    assert found["Abar"].shape == (64, 64)
    (claimed,) = re.findall(r"print\(.*# ([\d.]+)$", example, re.MULTILINE)
    assert (found["past"] - found["f"]).abs().max().item() == pytest.approx(float(claimed), rel=0.05)
    assert claimed in capsys.readouterr().out


def test_tables_of_the_measures():
    """The table's c, P and rank, against `nplr`."""
    import torch

    from hybridlm.ops.hippo import low_rank, nplr, transition

    rows = re.findall(r"^\| `(\w+)` \| (0|1/2) \| (.*) \| ([12]) \|$", TEXT, re.MULTILINE)
    assert [row[0] for row in rows] == ["legs", "legt", "lagt", "fourier"]
    for measure, c, P, rank in rows:
        assert (nplr(measure, 8)[0][:, 0] == (-0.5 if c == "1/2" else 0)).all()
        assert len(low_rank(measure, 8)) == int(rank)
        B = transition(measure, 8)[1]
        assert (P == "B/√2") == torch.equal(low_rank(measure, 8)[0], B / 2**0.5)
