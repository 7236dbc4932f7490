"""What the documentation shows is true: its patterns parse, its example mixer keeps the laws, its links lead on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybridlm.compose.pattern import parse
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec

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


@pytest.mark.parametrize("text", _blocks("notation.md", "yaml"))
def test_specs_of_the_notation_page(text, tmp_path):
    (tmp_path / "model.yaml").write_text(text, encoding="utf-8")
    assert plan(ModelSpec.read(tmp_path / "model.yaml")).layers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_decision_is_listed():
    index = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    notes = [path.name for path in (ROOT / "docs/decisions").glob("0*.md")]
    assert [name for name in notes if f"({name})" not in index] == []


# --------------------------------------------------------------------------------------------------- the example mixer
USE = """
import hybridlm as hl, torch
from hybridlm.registry import mixers
from hybridlm.testing import assert_laws

listed = {line.name: line for line in mixers.listing()}
assert listed["gated_conv"].error is None and "my-package" in listed["gated_conv"].source
model = hl.build("model.yaml")
logits = model(torch.randint(256, (2, 5))).logits
assert logits.shape == (2, 5, 256)
assert_laws("gated_conv")
"""


@pytest.fixture
def installed(tmp_path):
    """A folder as pip would leave it: my_package with the mixer of the page, and its entry point."""
    (code,) = _blocks("add-a-mixer.md", "python")
    (points,) = _blocks("add-a-mixer.md", "toml")
    package, info = tmp_path / "my_package", tmp_path / "my_package-0.1.dist-info"
    package.mkdir(), info.mkdir()
    (package / "__init__.py").touch()
    (package / "gated_conv.py").write_text(code.replace('@mixers.register("gated_conv")\n', ""), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    entry = points.splitlines()[1].replace('"', "")
    (info / "entry_points.txt").write_text(f"[hybridlm.mixers]\n{entry}\n")
    (tmp_path / "model.yaml").write_text(_blocks("add-a-mixer.md", "yaml")[0])
    return tmp_path


def test_example_mixer_as_a_package_of_its_own(installed):
    """Found, listed, composed, and it keeps the laws."""
    path = os.pathsep.join([str(installed), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", USE], cwd=installed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_example_mixer_in_this_process(tmp_path):
    """As the page shows it, decorator included."""
    from hybridlm.registry import mixers

    path = tmp_path / "gated_conv.py"
    path.write_text(_blocks("add-a-mixer.md", "python")[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("gated_conv_of_the_page", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert mixers.get("gated_conv") is module.GatedConv
        mixers.unregister("gated_conv")
    finally:
        del sys.modules[spec.name]
