"""Jamba's periods, and the forms in which its experts come."""

import json
from random import Random

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import CheckpointError
from hybridlm.export.family import family
from hybridlm.export.lift import lift
from hybridlm.export.lower import lower
from tests.export.common import WORDS, D, built, randomised
from tests.export.samples.jamba import experts, selective, theirs


def spec(pattern: str) -> dict:
    mamba, heads = selective(Random(0)), {"type": "attention", "heads": 4, "rope": False}
    moe = experts(Random(0), 24)
    blocks = {"m": {"mixer": mamba}, "A": {"mixer": heads}, "e": {"mixer": mamba, "mlp": moe}}
    blocks |= {"F": {"mixer": heads, "mlp": moe}}
    used = {name: block for name, block in blocks.items() if name in pattern}
    return {
        "d_model": D,
        "vocab_size": WORDS,
        "pattern": pattern,
        "blocks": used,
        "mlp": {"type": "swiglu", "width": 24},
    }


@pytest.mark.parametrize(
    ("pattern", "attention", "sparse"),
    [
        ("mA", (2, 1), None),
        ("Amm", (3, 0), None),
        ("mmAmmAmm", (3, 2), None),
        ("eA", (2, 1), (2, 0)),
        ("mFmF", (2, 1), (2, 1)),
        ("eFee", (4, 1), (1, 0)),
        ("mAme", (4, 1), (4, 3)),
    ],
)
def test_periods(pattern, attention, sparse):
    stack = plan(hl.ModelSpec.from_dict(spec(pattern)))
    assert family("jamba").misfits(stack) == []
    config = family("jamba").config(stack, 64)
    assert (config["attn_layer_period"], config["attn_layer_offset"]) == attention
    if sparse is None:
        assert config["num_experts"] == 1
    else:
        assert (config["expert_layer_period"], config["expert_layer_offset"]) == sparse


def test_experts_are_written_one_by_one(tmp_path):
    """As published, and as vLLM and llama.cpp read them."""
    lower(built(spec("eA")), tmp_path, "jamba")
    held = load_file(tmp_path / "model.safetensors")
    count = json.loads((tmp_path / "config.json").read_text())["num_experts"]
    found = {name for name in held if "experts" in name}
    parts = [f"{part}_proj.weight" for part in ("gate", "up", "down")]
    assert found == {f"model.layers.0.feed_forward.experts.{i}.{part}" for i in range(count) for part in parts}


def checkpoint(folder, original: bool) -> None:
    sizes = {"num_experts": 4, "expert_layer_period": 1, "expert_layer_offset": 0, "num_hidden_layers": 2}
    sizes |= {"attn_layer_period": 2, "attn_layer_offset": 1}
    torch.manual_seed(0)
    found = transformers.JambaForCausalLM(transformers.JambaConfig(**(theirs(Random(1)) | sizes)))
    randomised(found).save_pretrained(folder, save_original_format=original)


def test_experts_in_one_tensor_are_read(tmp_path):
    logits = []
    for original in (True, False):
        checkpoint(tmp_path / f"theirs-{original}", original)
        lift(tmp_path / f"theirs-{original}", tmp_path / f"ours-{original}")
        logits.append(hl.load(tmp_path / f"ours-{original}").eval()(torch.arange(20)[None]).logits)
    assert torch.equal(*logits)


def test_an_expert_that_is_missing_is_named(tmp_path):
    checkpoint(tmp_path / "theirs", True)
    held = load_file(tmp_path / "theirs" / "model.safetensors")
    name = "model.layers.1.feed_forward.experts.2.up_proj.weight"
    rest = {other: tensor for other, tensor in held.items() if other != name}
    save_file(rest, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    save_file({**held, name: held[name][1:].clone()}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: shape"):
        lift(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
