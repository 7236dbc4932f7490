"""What is written into config.json, trap by trap: what readers other than transformers need, or stumble over."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
import transformers

import hybridlm as hl
from hybridlm.compose.plan import Stack, plan
from hybridlm.errors import ExportError
from hybridlm.export.choice import choose, exportable
from hybridlm.export.family import FAMILIES, common, family
from tests.export.common import D, sample, spelled

MAMBA2 = {"type": "mamba2", "d_state": 5, "head_dim": 8}
NOPE = {"type": "attention", "heads": 4, "rope": False}
SWIGLU = {"type": "swiglu", "width": 24}


def stack_of(name: str, number: int) -> Stack:
    draw = Random(f"{name} {number}")
    return plan(hl.ModelSpec.from_dict(spelled(sample(name).fit(draw), draw)))


def written(name: str, stack: Stack) -> dict[str, Any]:
    """config.json, as it is read."""
    config = {**common(family(name), stack, "float32"), **family(name).config(stack, 4096)}
    return json.loads(json.dumps(config, allow_nan=False))


def config(name: str, pattern: str, blocks: dict, **rest: Any) -> dict[str, Any]:
    stack = plan(hl.ModelSpec(pattern=pattern, d_model=D, vocab_size=97, blocks=blocks, **rest))
    assert family(name).misfits(stack) == []
    return written(name, stack)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("number", range(8))
def test_of_every_family(name, number):
    """Its class, its type, ties, both names of the dtype; no limit on steps, and no infinity, which is no JSON."""
    stack = stack_of(name, number)
    found = written(name, stack)
    assert (found["architectures"], found["model_type"]) == ([family(name).architecture], family(name).model_type)
    assert (found["vocab_size"], found["hidden_size"]) == (stack.spec.vocab_size, D)
    assert found["tie_word_embeddings"] is (stack.spec.tie_embeddings and name != "nemotron_h")
    assert found["dtype"] == found["torch_dtype"] == "float32"
    assert found["max_position_embeddings"] == 4096
    assert stack.spec.norm_eps in (found.get("rms_norm_eps"), found.get("layer_norm_epsilon"))
    assert "time_step_limit" not in found


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_written_that_the_class_does_not_know(name):
    """But for names that other readers want."""
    cls = getattr(transformers, family(name).architecture.replace("ForCausalLM", "Config"))
    others = {"torch_dtype", "rope_theta", "architectures", "intermediate_size", "max_position_embeddings"}
    others |= {"rms_norm_eps", "hybrid_override_pattern", "num_hidden_layers"} if name == "nemotron_h" else set()
    others |= {"head_dim"} if name == "falcon_h1" else set()
    assert written(name, stack_of(name, 0)).keys() - cls().to_dict().keys() - others == set()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_heads_that_do_not_fill_the_width_are_said(name):
    mixer = {"type": "attention" if name == "llama" else "sliding_window", "heads": 4, "kv_heads": 2, "head_dim": 10}
    found = config(name, "A", {"A": {"mixer": {**mixer, "rope": True, "rope_theta": 500.0}, "mlp": SWIGLU}})
    assert (found["head_dim"], found["num_key_value_heads"]) == (10, 2)
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] == 500.0  # for readers of both kinds
    assert found["hidden_act"] == "silu"


@pytest.mark.parametrize("window", [2, 77])
def test_the_window_of_mistral_is_said(window):
    mixer = {"type": "sliding_window", "heads": 4, "window": window}
    assert config("mistral", "W", {"W": {"mixer": mixer, "mlp": SWIGLU}})["sliding_window"] == window


def test_layers_of_granite_with_windows():
    """Zero is no positions; the window is a number even where no layer has one; the multipliers change nothing."""
    full, sliding = {"type": "attention", "heads": 2}, {"type": "sliding_window", "heads": 2, "window": 5}
    blocks = {
        "A": {"mixer": {**full, "rope": False}}, "B": {"mixer": {**full, "rope": True, "rope_theta": 77.0}},
        "W": {"mixer": {**sliding, "rope": True}},
    }  # fmt: skip
    found = config("granite_swa", "AWB", blocks)
    assert found["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert found["layer_rope_theta"] == [0, 10000.0, 77.0]
    assert found["sliding_window"] == 5
    assert found["attention_multiplier"] == 16**-0.5
    assert [found[f"{name}_multiplier"] for name in ("embedding", "residual")] + [found["logits_scaling"]] == [1, 1, 1]
    assert config("granite_swa", "A", blocks)["sliding_window"] == 4096


@pytest.mark.parametrize(("rope", "said"), [(True, "rope"), (False, "nope")])
def test_layers_of_granite_have_the_names_that_llama_cpp_knows(rope, said):
    found = config("granite_hybrid", "MA", {"M": {"mixer": MAMBA2}, "A": {"mixer": {**NOPE, "rope": rope}}})
    assert found["layer_types"] == ["mamba", "attention"]
    assert (found["position_embedding_type"], "rope_theta" in found) == (said, rope)
    assert found["num_local_experts"] == found["num_experts_per_tok"] == 0
    assert found["shared_intermediate_size"] == found["intermediate_size"]
    assert found["attention_multiplier"] == 8**-0.5
    assert found["mamba_n_heads"] * found["mamba_d_head"] == found["mamba_expand"] * D


@pytest.mark.parametrize("pattern", ["M", "MA", "MMA-", "M-A"])
def test_a_stack_in_which_an_mlp_is_missing_never_goes_to_granite(pattern):
    """vLLM has one in every layer."""
    blocks = {"M": {"mixer": MAMBA2, "mlp": "none"}, "A": {"mixer": NOPE, "mlp": "none"}}
    stack = plan(hl.ModelSpec(pattern=pattern, d_model=D, vocab_size=97, blocks=blocks))
    with pytest.raises(ExportError, match="no MLP follows the mixer"):
        choose(stack, "granite_hybrid")
    assert "granite_hybrid" in exportable(stack)["misfits"]


def test_mamba_says_its_bottleneck_and_its_biases():
    mixer = {"type": "mamba", "d_state": 5, "dt_rank": 3, "expand": 3}
    found = config("mamba", "m2", {"m": {"mixer": mixer}}, mlp="none", residual_in_fp32=True, tie_embeddings=False)
    assert (found["time_step_rank"], found["expand"], found["intermediate_size"]) == (3, 3, 3 * D)
    assert (found["use_bias"], found["use_conv_bias"]) == (False, True)
    assert (found["residual_in_fp32"], found["tie_word_embeddings"]) == (True, False)  # both are the other way there


@pytest.mark.parametrize("expand", [1, 2, 3])
def test_heads_of_mamba2_make_up_its_width(expand):
    found = config("mamba2", "M", {"M": {"mixer": {**MAMBA2, "expand": expand, "n_groups": 2}}}, mlp="none")
    assert found["num_heads"] * found["head_dim"] == found["expand"] * found["hidden_size"]
    assert (found["n_groups"], found["tie_word_embeddings"], found["use_bias"]) == (2, False, False)
