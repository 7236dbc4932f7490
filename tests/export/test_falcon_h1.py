"""Falcon-H1's config.json, silent branches, and multipliers that go into the weights."""

import json
from random import Random

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hybridlm as hl
from hybridlm.export.families.falcon_h1 import MULTIPLIERS
from hybridlm.export.lift import lift
from hybridlm.export.lower import lower
from hybridlm.export.proof import LIMIT, prove
from tests.export.common import WORDS, D, built, randomised
from tests.export.samples.falcon_h1 import multipliers, theirs

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "head_dim": 8, "d_state": 5}},
    "A": {"mixer": {"type": "attention", "heads": 4, "head_dim": 6, "rope": True, "rope_theta": 500.0}},
}


def model(pattern: str, **more) -> hl.HybridLM:
    blocks = {name: BLOCKS[name] for name in BLOCKS if name in pattern}
    mlp = {"type": "swiglu", "width": 24}
    return built({"d_model": D, "vocab_size": WORDS, "pattern": pattern, "blocks": blocks, "mlp": mlp, **more})


def written(folder, given: hl.HybridLM) -> dict:
    lower(given, folder, "falcon_h1")
    return json.loads((folder / "config.json").read_text())


def test_everything_is_said(tmp_path):
    config = written(tmp_path, model("<M|A>"))
    assert {name: config[name] for name in MULTIPLIERS} == MULTIPLIERS
    assert (config["head_dim"], config["rope_theta"]) == (6, 500.0)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}
    assert config["mamba_norm_before_gate"] is False
    assert config["mamba_rms_norm"] is True
    assert config["mamba_d_ssm"] == config["mamba_n_heads"] * config["mamba_d_head"] == 64
    assert "time_step_limit" not in config


@pytest.mark.parametrize(("pattern", "silent"), [("MA", ["0.self_attn", "1.mamba"]), ("A<A|M>", ["0.mamba"])])
def test_a_silent_mixer_is_zero(tmp_path, pattern, silent):
    written(tmp_path, model(pattern))
    held = load_file(tmp_path / "model.safetensors")
    zero = {name for name, tensor in held.items() if not tensor.any()}
    assert zero == {name for name in held if any(name.startswith(f"model.layers.{part}.") for part in silent)}


def test_of_a_silent_mixer_only_its_output_has_to_be_zero(tmp_path):
    given = model("M<M|A>")
    written(tmp_path, given)
    held = load_file(tmp_path / "model.safetensors")
    noise = {name: torch.randn(tensor.shape) for name, tensor in held.items() if not tensor.any()}
    (end,) = (name for name in noise if name.endswith("o_proj.weight"))
    for loud, holds in ((noise, False), ({**noise, end: held[end]}, True)):
        save_file({**held, **loud}, tmp_path / "model.safetensors", {"format": "pt"})
        assert prove(given, tmp_path).holds == holds


def checkpoint(folder, dtype: torch.dtype = torch.float32, **changes) -> None:
    sizes = theirs(Random(2)) | {"mamba_rms_norm": True} | changes
    torch.manual_seed(0)
    found = randomised(transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**sizes)))
    found.to(dtype).save_pretrained(folder)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "ssm_multipliers" else [pytest.mark.deep]) for name in MULTIPLIERS]
)
def test_each_multiplier_goes_into_the_weights(tmp_path, name):
    checkpoint(tmp_path / "theirs", **{name: multipliers(Random(0))[name]})
    lift(tmp_path / "theirs", tmp_path / "ours")
    found = hl.load(tmp_path / "ours")
    assert max(prove(found, tmp_path / "theirs").errors.values()) <= LIMIT
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, name: MULTIPLIERS[name]}))
    assert not prove(found, tmp_path / "theirs").holds


def test_one_matrix_with_two_multipliers_becomes_two(tmp_path):
    for there, (enters, leaves) in enumerate([(3.0, 0.25), (3.0, 3.0)]):
        ours = tmp_path / f"ours-{there}"
        scales = {"embedding_multiplier": enters, "lm_head_multiplier": leaves}
        checkpoint(tmp_path / f"theirs-{there}", tie_word_embeddings=True, **scales)
        lift(tmp_path / f"theirs-{there}", ours)
        assert hl.load(ours).spec.tie_embeddings == (enters == leaves)


@pytest.mark.parametrize(("factor", "dtype"), [(1.0, torch.bfloat16), (0.25, torch.bfloat16), (0.3, torch.float32)])
def test_multiplied_weights_are_not_rounded(tmp_path, factor, dtype):
    """A power of two leaves their digits alone; another factor asks for the digits of float32."""
    checkpoint(tmp_path / "theirs", torch.bfloat16, **{**MULTIPLIERS, "ssm_out_multiplier": factor})
    lift(tmp_path / "theirs", tmp_path / "ours")
    found = hl.load(tmp_path / "ours")
    assert {parameter.dtype for parameter in found.parameters()} == {dtype}
    assert max(prove(found, tmp_path / "theirs").errors.values()) <= LIMIT
