"""A model as programs of ONNX, by onnxruntime on the CPU: sizes that no trace has seen, refusals by name."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hybridlm.errors import ExportError, UnsupportedError
from hybridlm.export.program import onnx_export, write_onnx
from hybridlm.registry import mixers
from tests.export.program_subject import LIMIT, PIECE, Programs, beside, ragged, stirred


def opened(folder: Path) -> Programs:
    """prefill and step, called by the names that the description gives."""
    about = json.loads((folder / "onnx.json").read_text())
    return {name: _session(folder, program) for name, program in about["programs"].items()}


def _session(folder: Path, program: dict):
    session = onnxruntime.InferenceSession(folder / program["file"], providers=["CPUExecutionProvider"])
    names, given = ([port["name"] for port in program[side]] for side in ("inputs", "outputs"))

    def run(inputs):
        arrays = session.run(given, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        return [torch.from_numpy(np.asarray(array)) for array in arrays]

    return run


def check(pattern: str, out: Path, **spec) -> None:
    """Sizes and pads, and that a changed weight would be seen."""
    model = stirred(pattern, seed=2, **spec)
    lowered = write_onnx(model, out, piece=PIECE)
    assert lowered.target == "onnx"
    assert lowered.proof.holds
    programs = opened(out)
    for rows, tokens in ((1, 1), (2, 5), (3, 16), (1, 43)):
        assert beside(model, programs, torch.ones(rows, tokens, dtype=torch.bool)) <= LIMIT
    assert beside(model, programs, ragged(4, 21, left=True)) <= LIMIT
    assert beside(model, programs, ragged(3, 18, left=False)) <= LIMIT
    weight = next(parameter for parameter in model.blocks[0].parameters() if parameter.ndim > 1)
    with torch.no_grad():
        weight.copy_(weight.roll(1, 0))
    assert beside(model, programs, torch.ones(2, 9, dtype=torch.bool)) > 10 * LIMIT


def test_a_small_model(tmp_path):
    """Of the mixer that takes the least time."""
    check("[short_conv]", tmp_path, mlp="none")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_traced(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=rf"{package}, which is not installed: pip install 'hybridlm\[onnx\]'"):
        write_onnx(stirred("[attention]", mlp="none"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cause", [NotImplementedError("aten.strange\nand so on"), NotImplementedError()])
def test_what_onnx_cannot_say_is_refused_with_the_cause(cause, tmp_path, monkeypatch):
    """Its first line, or, where it says nothing, its kind."""

    def fail(*args, **options):
        raise torch.onnx.errors.OnnxExporterError("see above") from cause

    monkeypatch.setattr(torch.onnx, "export", fail)
    form = replace(onnx_export.FORM, trace=lambda *_: {"prefill": None})
    monkeypatch.setattr(onnx_export, "FORM", form)
    said = r"prefill: ONNX has no operator for what a layer does: (aten\.strange|NotImplementedError)$"
    with pytest.raises(ExportError, match=said):
        write_onnx(stirred("[short_conv]", mlp="none"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.deep
@pytest.mark.parametrize(
    "pattern",
    [
        "[mamba2][attention]",
        "[mamba2][sliding_window][attention]",
        "[mamba][attention]",
        "[s4][attention]",
        "[gated_deltanet][attention]",
        *(f"[{name}]" for name in mixers.names()),
    ],
)
def test_every_mixer_and_their_hybrids(pattern, tmp_path):
    check(pattern, tmp_path, mlp="none")


@pytest.mark.deep
def test_experts(tmp_path):
    check("[attention]", tmp_path, mlp={"type": "moe", "width": 16, "experts": 4, "top_k": 2})
