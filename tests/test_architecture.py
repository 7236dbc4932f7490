"""The shape of the house: direction of imports, what an import may cost, how long a function may get.

These tests read source text and run short subprocesses; they know nothing of what the code computes.
"""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hybridlm"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
HEAVY = ("torch", "lightning", "pytorch_lightning", "transformers", "triton", "matplotlib", "omegaconf", "jsonargparse")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _functions(path: Path) -> list[tuple[str, int]]:
    """(file:line name, lines from `def` to the last line, docstring and signature included) of every function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{_name(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1) for node in nodes]


def _loaded_by(code: str, modules: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of `modules` a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('LOADED', *[m for m in {modules!r} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


# ---------------------------------------------------------------------------------------------------- import contracts
def test_import_contracts():
    """Every contract of [tool.importlinter] holds: layers point down, optional packages stay in their rooms."""
    lint = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_has_a_floor():
    """A module at the top of the package is named in the rooms contract, or no contract would watch it."""
    text = " ".join(CONTRACTS["rooms"]["layers"])
    named = set(text.replace("|", " ").replace(":", " ").replace("(", " ").replace(")", " ").split())
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} <= named


def test_every_mixer_is_kept_apart():
    """No module that the mixer registry names imports another one: a mixer can be read, copied and removed alone."""
    from hybridlm.registry import mixers

    modules = {path.partition(":")[0] for path in mixers._builtin.values()}
    assert {(name, other) for name in modules for other in _imports(name) & modules - {name}} == set()


def _imports(module: str) -> set[str]:
    """Modules and names within modules that a module's text imports."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return plain | {s.module for s in sources} | {f"{s.module}.{alias.name}" for s in sources for alias in s.names}


# ----------------------------------------------------------------------------------------------------------- lightness
@pytest.mark.parametrize("module", ["hybridlm", "hybridlm.compose", "hybridlm.registry", "hybridlm.compose.pattern"])
def test_imports_nothing_heavy(module):
    assert _loaded_by(f"import {module}") == set()


def test_building_a_model_on_cpu_needs_only_torch():
    code = "import hybridlm as hl; hl.build(pattern='WSMmA', d_model=32, vocab_size=16)"
    unwanted = ("lightning", "pytorch_lightning", "transformers", "matplotlib", "tokenizers", "tensorboard")
    kernels = {f"hybridlm.ops.{path.parent.name}.triton" for path in (ROOT / "hybridlm/ops").glob("*/triton.py")}
    assert _loaded_by(code, (*unwanted, *kernels)) == set()  # torch's compiler itself imports triton where it is


# ------------------------------------------------------------------------------------------------------- size of things
def test_functions_are_short():
    lengths = dict(entry for path in FILES for entry in _functions(path))
    assert {name: length for name, length in lengths.items() if length > 50} == {}
    assert statistics.median(lengths.values()) <= 15


def test_forward_reads_like_a_figure():
    lengths = dict(entry for path in FILES for entry in _functions(path))
    assert {name: length for name, length in lengths.items() if name.endswith(" forward") and length > 40} == {}


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_file_has_one_subject(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def _reads_of_what_was_saved(path: Path) -> list[tuple[str, int]]:
    functions = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef))
    return [
        (
            f"{_name(path)} {function.name}",
            sum(isinstance(n, ast.Attribute) and n.attr == "saved_tensors" for n in ast.walk(function)),
        )
        for function in functions
    ]


def test_what_was_saved_for_the_backward_pass_is_read_once():
    """Activation checkpointing computes it again for that, and refuses a second time."""
    reads = dict(entry for path in FILES for entry in _reads_of_what_was_saved(path))
    assert max(reads.values()) == 1, [name for name, count in reads.items() if count > 1]


# -------------------------------------------------------------------------------------------------------------- habits
@pytest.mark.parametrize("path", sorted((PACKAGE / "layers").rglob("*.py")), ids=_name)
def test_layers_ignore_no_argument(path):
    """A layer takes what it names: no **kwargs, no hasattr, no getattr with a default."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments) and node.kwarg is not None:
            found.append(f"**{node.kwarg.arg}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += ["hasattr"] if node.func.id == "hasattr" else []
            found += ["getattr"] if node.func.id == "getattr" and len(node.args) == 3 else []
    assert found == []


def test_hardware_is_probed_in_one_place():
    """Only ops/backend.py asks what the machine has in order to choose code. Training asks for devices to train on."""
    probes = ("cuda.is_available", "get_device_capability", "find_spec", "get_device_properties")
    rest = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "train"]
    found = {_name(path) for path in rest if any(probe in path.read_text(encoding="utf-8") for probe in probes)}
    assert found <= {"hybridlm/ops/backend.py"}


def test_test_files_have_unique_names():
    """tests/ holds no __init__.py, so pytest tells its files apart by name alone."""
    names = [path.name for path in TESTS if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_typed_marker_is_shipped():
    assert (PACKAGE / "py.typed").exists()


def test_version_is_said_once():
    import hybridlm

    assert hybridlm.__version__ == PROJECT["project"]["version"]


def test_every_core_dependency_is_pinned():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pinned = {line.partition("==")[0] for line in pins if "==" in line and not line.startswith("#")}
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    names = {"".join(c if c.isalnum() or c in "-_" else " " for c in entry).split()[0] for entry in wanted}
    assert names <= pinned
