"""What the wheel holds. Built with the hatchling of this environment, without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, open for reading."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_every_config_is_inside(wheel):
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    found = {name for name in wheel.namelist() if name.startswith("hybridlm/configs/")}
    assert found == {f"hybridlm/{name}" for name in shipped}
    assert shipped


def test_every_module_is_inside_and_nothing_else(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hybridlm").rglob("*.py")}
    names = set(wheel.namelist())
    assert modules | {"hybridlm/py.typed"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"hybridlm"}


def test_no_compiler_is_needed(wheel):
    """One wheel for every platform; the source-only packages are extras, behind a Linux marker."""
    assert wheel.filename.endswith("py3-none-any.whl")
    metadata = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    required = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
    core = [line for line in required if "extra ==" not in line]
    compiled = [line for line in required if line.startswith(("mamba-ssm", "causal-conv1d", "flash-attn"))]
    assert not [line for line in core if line in compiled]
    assert all("platform_system == 'Linux'" in line.replace('"', "'") for line in compiled)
    assert len(compiled) == 3
