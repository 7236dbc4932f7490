"""A kernel that is launched early must wait before it touches memory: a race would show on some GPU, some day."""

import ast
from pathlib import Path

import pytest
import torch

import hybridlm.ops

FILES = sorted(Path(hybridlm.ops.__file__).parent.rglob("triton*.py"))
EARLY = [path for path in FILES if "import queue, queued" in path.read_text(encoding="utf-8")]
NAMES = [f"{path.parent.name}/{path.name}" for path in EARLY]


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", EARLY, ids=NAMES)
def test_a_kernel_waits_before_anything_else(path):
    early = {
        name: function for name, function in functions(path).items() if "QUEUED" in [a.arg for a in function.args.args]
    }
    assert early
    for name, function in early.items():
        body = [
            node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ]
        assert ast.unparse(body[0]) == "queue(QUEUED)", name


def test_nothing_else_is_launched_early():
    assert len(EARLY) > 5
    assert [path.name for path in FILES if "launch_pdl" in path.read_text(encoding="utf-8")] == ["triton_launch.py"]


def test_there_is_nothing_to_wait_for_on_a_cpu():
    from hybridlm.ops.triton_launch import queued

    assert queued(torch.zeros(1)) == {"QUEUED": False}
