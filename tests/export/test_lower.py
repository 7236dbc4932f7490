"""lower: what is refused and how, and that nothing is left of what did not come to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hybridlm as hl
from hybridlm.errors import ExportError
from hybridlm.export import lower as lowering
from hybridlm.export.families.llama import Llama
from hybridlm.export.lift import lift
from hybridlm.export.lower import lower
from hybridlm.export.proof import Proof
from hybridlm.export.weights import Weight
from tests.export.common import built

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 5, "head_dim": 8}},
    "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2}},
}
LLAMA = {"pattern": "A2", "d_model": 32, "vocab_size": 97, "blocks": BLOCKS}
GRANITE = {**LLAMA, "pattern": "MA"}
S4 = {"pattern": "SA", "d_model": 32, "vocab_size": 97}


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------- what is left behind
def test_a_refusal_touches_nothing(tmp_path):
    with pytest.raises(ExportError, match="s4"):
        lower(built(S4), tmp_path / "new", "llama")
    lower(built(LLAMA), tmp_path / "old")
    before = files(tmp_path)
    with pytest.raises(ExportError, match="s4"):
        lower(built(S4), tmp_path / "old")
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_model_without_weights_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"no weights yet.*; call to_empty, init_weights"):
        lower(hl.build(**LLAMA, device="meta"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def failing_proof(monkeypatch):
    wrong = Proof({"prefill": 1e-7, "step": 3e-5, "padded": 1e-7}, 28)
    monkeypatch.setattr(lowering, "prove", lambda *args, **more: wrong)
    return "step 3.0e-05"


def not_a_number(monkeypatch):
    wrong = Proof({"prefill": float("inf"), "step": 0.0, "padded": 0.0}, 28)
    monkeypatch.setattr(lowering, "prove", lambda *args, **more: wrong)
    return "prefill inf"


def another_weight(monkeypatch):
    """What is written is not the model: the real proof finds it."""
    plainly = Weight.join

    def spoilt(self, read, dtype):
        tensor = plainly(self, read, dtype)
        return tensor.flip(0) if self.theirs.endswith("k_proj.weight") else tensor

    monkeypatch.setattr(Weight, "join", spoilt)
    return "what was written is not the model"


def another_class(monkeypatch):
    """transformers cannot run what was written."""
    plainly = Llama.config
    monkeypatch.setattr(
        Llama, "config", lambda self, stack, length: {**plainly(self, stack, length), "num_attention_heads": 3}
    )
    return r"transformers cannot run what was written: (.|\n)*number of attention heads"


@pytest.mark.parametrize("spoil", [failing_proof, not_a_number, another_weight, another_class])
@pytest.mark.parametrize("there", [False, True])
def test_a_proof_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, spoil, there):
    if there:
        lower(built(GRANITE), tmp_path / "out")
        (tmp_path / "out" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    word = spoil(monkeypatch)
    with pytest.raises(ExportError, match=word):
        lower(built(LLAMA), tmp_path / "out")
    assert files(tmp_path) == before
    assert (tmp_path / "out").exists() == there


def test_what_goes_wrong_beside_leaves_nothing(tmp_path):
    def full(staged, lowered):
        assert (staged / "config.json").is_file()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        lower(built(LLAMA), tmp_path / "out", beside=full)
    assert list(tmp_path.iterdir()) == []


def test_a_new_export_replaces_an_old_one_whole(tmp_path):
    lower(built(GRANITE), tmp_path)
    lower(built(LLAMA), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert sorted(files(tmp_path)) == ["config.json", "model.safetensors"]


# ------------------------------------------------------------------------------------------------------------ the model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept_there_and_back(tmp_path, dtype):
    model = built(GRANITE).to(dtype)
    lower(model, tmp_path / "theirs")
    held = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {dtype}
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["dtype"] == str(dtype)[6:]
    lift(tmp_path / "theirs", tmp_path / "ours")
    again = hl.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in again.values()} == {dtype}


def test_the_model_stays_as_it_was(tmp_path):
    model = built(LLAMA).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lower(model, tmp_path)
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("limit", [0, "5GB"])
def test_a_size_of_files_that_is_none(tmp_path, limit):
    with pytest.raises(hl.SpecError, match="max_shard_bytes"):
        lower(built(LLAMA), tmp_path / "out", max_shard_bytes=limit)
    assert not (tmp_path / "out").exists()


def test_the_length_that_is_said(tmp_path):
    lower(built(LLAMA), tmp_path, max_length=77)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 77
