"""Zamba2's shared blocks: stored once or at every place, each place with corrections of its own."""

from random import Random

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hybridlm as hl
from hybridlm.errors import CheckpointError, ExportError
from hybridlm.export.choice import choose
from hybridlm.export.lift import lift
from hybridlm.export.proof import LIMIT, prove
from tests.export.common import randomised
from tests.export.samples.zamba2 import theirs

LAYERS = "HMHH"


def checkpoint(folder, dtype: torch.dtype = torch.float32) -> None:
    kinds = [{"M": "mamba", "H": "hybrid"}[letter] for letter in LAYERS]
    sizes = {"num_hidden_layers": len(LAYERS), "layers_block_type": kinds, "num_mem_blocks": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "use_shared_attention_adapter": True}
    torch.manual_seed(0)
    found = transformers.Zamba2ForCausalLM(transformers.Zamba2Config(**(theirs(Random(0)) | sizes)))
    randomised(found).to(dtype).save_pretrained(folder)


def repeated(folder) -> dict[str, torch.Tensor]:
    """Its tensors, shared ones again at the other place of the same block."""
    held = load_file(folder / "model.safetensors")
    first, again = "model.layers.0.shared_transformer.", "model.layers.3.shared_transformer."
    assert not any(name.startswith(again) for name in held)
    return held | {again + name.removeprefix(first): held[name].clone() for name in held if name.startswith(first)}


def test_blocks_take_turns(tmp_path):
    checkpoint(tmp_path / "theirs")
    found = lift(tmp_path / "theirs", tmp_path / "ours")
    assert found.pattern.replace(" ", "") == "Z@aMMZ@bMZ@aM"


def test_shared_weights_may_be_repeated_but_not_differ(tmp_path):
    checkpoint(tmp_path / "theirs")
    lift(tmp_path / "theirs", tmp_path / "once")
    held = repeated(tmp_path / "theirs")
    save_file(held, tmp_path / "theirs" / "model.safetensors")
    lift(tmp_path / "theirs", tmp_path / "twice")
    ids = torch.arange(20)[None]
    assert torch.equal(*(hl.load(tmp_path / name).eval()(ids).logits for name in ("once", "twice")))
    for part in (
        "self_attn.o_proj",
        "self_attn.linear_q_adapter_list.2.1",
        "feed_forward.gate_up_proj_adapter_list.0.0",
    ):
        name = f"model.layers.3.shared_transformer.{part}.weight"
        save_file({**held, name: held[name] + 1}, tmp_path / "theirs" / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"{name}: not the same as model.layers.0"):
            lift(tmp_path / "theirs", tmp_path / "differing")
    assert not (tmp_path / "differing").exists()


def test_scaled_queries_are_not_rounded(tmp_path):
    checkpoint(tmp_path / "theirs", torch.bfloat16)
    lift(tmp_path / "theirs", tmp_path / "ours")
    found = hl.load(tmp_path / "ours")
    assert found.embed.weight.dtype == torch.float32
    assert max(prove(found, tmp_path / "theirs").errors.values()) <= LIMIT


def test_it_is_never_written(tmp_path):
    with pytest.raises(ExportError, match="read, and never written"):
        choose(None, "zamba2")
