"""Whole hybrids of transformers from our specs: Jamba, Granite 4, Nemotron-H, Falcon-H1 and Zamba2, weight by weight.

Every parameter is random first, biases and norms too. All of theirs are read and all of ours are given; exchanging
entries of any kind of them is seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import hybridlm as hl

LIMIT = 1e-5
"""The most any logit may be off, in units of the RMS of all. The worst seen is written beside each family."""

D, WORDS, THETA, STEPS = 32, 97, 500.0, 4
EPS, ZAMBA_EPS = 1e-3, 1e-5  # a large one, so that a wrong one shows; Zamba2's gated norm always has this one
IDS = torch.randint(1, WORDS, (2, 21), generator=torch.Generator().manual_seed(1))

WIDTH = {"vocab_size": WORDS, "hidden_size": D, "rms_norm_eps": EPS}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
SWIGLU = {"type": "swiglu", "width": 48}


@dataclass(frozen=True)
class Case:
    """theirs: class and config. rules: (their name, as a regular expression; ours, one or several, as templates).

    A tensor with two names of ours is split into halves, or copied to both where `copied` matches.
    """

    theirs: tuple[str, dict[str, Any]]
    spec: dict[str, Any]
    rules: tuple[tuple[str, str | tuple[str, ...]], ...]
    place: Callable[[int], int] = field(default=lambda layer: layer)
    copied: str = "$^"
    scale: Mapping[str, float] = field(default_factory=dict)


def attention(kv_heads: int, rope: bool, **sizes) -> dict:
    return {"type": "attention", "heads": 4, "kv_heads": kv_heads, "rope": rope, "rope_theta": THETA, **sizes}


def matrix(groups: int, **sizes) -> dict:
    return {"type": "mamba2", "d_state": 5, "d_conv": 3, "head_dim": 8, "chunk": 16, "n_groups": groups, **sizes}


AROUND = (
    (r"model\.embed(?:_tokens|dings)\.", "embed."),
    (r"model\.(?:norm|norm_f|final_layernorm)\.", "final_norm."),
    (r"lm_head\.", "lm_head."),
)
HALVES = (
    (r"(\d+)\.(?:mamba|self_attn)\.", "blocks.{}.mixer."),
    (r"(\d+)\.input_layernorm\.", "blocks.{}.norm."),
    (r"(\d+)\.(?:pre_ff|post_attention)_layernorm\.", "blocks.{}.mlp_norm."),
    (r"(\d+)\.shared_mlp\.input_linear\.", ("blocks.{}.mlp.gate_proj.", "blocks.{}.mlp.up_proj.")),
    (r"(\d+)\.shared_mlp\.output_linear\.", "blocks.{}.mlp.down_proj."),
    (
        r"(\d+)\.feed_forward\.experts\.gate_up_proj",
        ("blocks.{}.mlp.experts.gate_proj.weight", "blocks.{}.mlp.experts.up_proj.weight"),
    ),
    (r"(\d+)\.feed_forward\.experts\.down_proj", "blocks.{}.mlp.experts.down_proj.weight"),
    (r"(\d+)\.feed_forward\.", "blocks.{}.mlp."),
)


def jamba(layers: int, period: int, offset: int, experts: dict, pattern: str, kv_heads: int) -> Case:
    """Worst seen: 3.7e-6."""
    config = {
        **WIDTH, **experts, "num_hidden_layers": layers, "attn_layer_period": period, "attn_layer_offset": offset,
        "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_dt_rank": 3,
    }  # fmt: skip
    moe = {"type": "moe", "experts": 4, "top_k": 2, "width": 48, "normalize": False}
    mamba = {"type": "mamba", "d_state": 5, "d_conv": 3, "dt_rank": 3, "bcdt_norm": True}
    blocks = {"m": {"mixer": mamba}, "A": {"mixer": attention(kv_heads, False)}, "e": {"mixer": mamba, "mlp": moe}}
    return Case(("Jamba", config), {"pattern": pattern, "blocks": blocks}, HALVES)


def granite(groups: int, kv_heads: int, pattern: str, tie: bool, rope: bool) -> Case:
    """Worst seen: 2.3e-6."""
    types = ["full_attention" if letter == "A" else "linear_attention" for letter in pattern]
    config = {
        **WIDTH, **ROPE, "num_hidden_layers": len(pattern), "layer_types": types, "num_local_experts": 0,
        "shared_intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "attention_multiplier": 8**-0.5, "position_embedding_type": "rope" if rope else None,
        "mamba_n_heads": 8, "mamba_n_groups": groups, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_chunk_size": 8,
        "tie_word_embeddings": tie,
    }  # fmt: skip
    blocks = {"M": {"mixer": matrix(groups)}, "A": {"mixer": attention(kv_heads, rope)}}
    return Case(("GraniteMoeHybrid", config), {"pattern": pattern, "blocks": blocks, "tie_embeddings": tie}, HALVES)


def nemotron(groups: int, kv_heads: int, pattern: str) -> Case:
    """Worst seen: 1.6e-6."""
    config = {
        "vocab_size": WORDS, "hidden_size": D, "layer_norm_epsilon": EPS, "hybrid_override_pattern": pattern,
        "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": groups, "ssm_state_size": 5, "conv_kernel": 3,
        "chunk_size": 8,
    }  # fmt: skip
    mlps = [str(i) for i, letter in enumerate(pattern) if letter == "-"]
    alone = rf"({'|'.join(mlps)})\."
    rules = (
        (rf"{alone}norm\.", "blocks.{}.mlp_norm."),
        (rf"{alone}mixer\.", "blocks.{}.mlp."),
        (r"(\d+)\.", "blocks.{}."),
    )
    blocks = {
        "M": {"mixer": matrix(groups), "mlp": "none"},
        "A": {"mixer": attention(kv_heads, False, head_dim=16), "mlp": "none"},
    }
    spec = {"pattern": pattern, "notation": "megatron", "blocks": blocks, "mlp": {"type": "relu2", "width": 48}}
    return Case(("NemotronH", config), spec, rules)


def falcon(groups: int, kv_heads: int, heads: int, gated_norm: bool, tie: bool) -> Case:
    """Worst seen: 1.6e-6."""
    config = {
        **WIDTH, **ROPE, "num_hidden_layers": 2, "intermediate_size": 48, "tie_word_embeddings": tie,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "mamba_d_ssm": 8 * heads, "mamba_n_heads": heads,
        "mamba_d_head": 8, "mamba_n_groups": groups, "mamba_d_state": 5, "mamba_d_conv": 3, "mamba_chunk_size": 8,
        "mamba_rms_norm": gated_norm, "mamba_norm_before_gate": False,
    }  # fmt: skip
    rules = (
        (r"(\d+)\.mamba\.", "blocks.{}.mixer.mixers.0."),
        (r"(\d+)\.self_attn\.", "blocks.{}.mixer.mixers.1."),
        *HALVES,
    )
    mixer = matrix(groups, expand=8 * heads / D, gated_norm=gated_norm)
    blocks = {"M": {"mixer": mixer}, "A": {"mixer": attention(kv_heads, True)}}
    return Case(("FalconH1", config), {"pattern": "<M|A>2", "blocks": blocks, "tie_embeddings": tie}, rules)


def zamba2(layers: str, memories: int, groups: int, kv_heads: int, adapters: bool, rope: bool) -> Case:
    """Worst seen: 3.3e-6. `layers`: M or H, theirs: a shared block, then a Mamba-2 layer."""
    config = {
        **WIDTH, **ROPE, "rms_norm_eps": ZAMBA_EPS, "num_hidden_layers": len(layers), "num_mem_blocks": memories,
        "intermediate_size": 48,
        "layers_block_type": ["hybrid" if letter == "H" else "linear_attention" for letter in layers],
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "adapter_rank": 3, "use_mem_rope": rope,
        "use_shared_attention_adapter": adapters, "n_mamba_heads": 8, "mamba_ngroups": groups, "mamba_d_state": 5,
        "mamba_d_conv": 3, "chunk_size": 8, "tie_word_embeddings": True,  # else it does not share its blocks either
    }  # fmt: skip
    hybrids = [i for i, letter in enumerate(layers) if letter == "H"]
    names = ["one", "two"][:memories]
    texts = [f"Z@{names[hybrids.index(i) % memories]} M" if i in hybrids else "M" for i in range(len(layers))]
    shared = {
        "mixer": attention(kv_heads, rope), "mlp": {"type": "geglu", "width": 48},
        "input": "concat_embeddings", "output": "next_mixer", "low_rank": 3 if adapters else {"mlp": 3},
    }  # fmt: skip
    blocks = {"M": {"mixer": matrix(groups)}, "Z": shared}
    places = {i: i + sum(at <= i for at in hybrids) for i in range(len(layers))}  # of their Mamba-2 layers
    rules = [(r"(\d+)\.(?:mamba_decoder\.)?mamba\.", "blocks.{}.mixer.")]
    rules += [(r"(\d+)\.(?:mamba_decoder\.)?input_layernorm\.", "blocks.{}.norm.")]
    rules += [(rf"{i}\.linear\.", f"blocks.{places[i] - 1}.proj.") for i in hybrids]
    for i, name in zip(hybrids, names, strict=False):
        rules += [(rf"{i}\.shared_transformer\.{theirs}", ours) for theirs, ours in _zamba_block(f"shared.{name}.")]
    for n, i in enumerate(hybrids):
        place, any_block = f"blocks.{places[i] - 1}.low_rank.", r"\d+\.shared_transformer\."
        for at, factor in enumerate("AB"):
            halves = tuple(f"{place}mlp.{half}_proj.{factor}." for half in ("gate", "up"))
            rules += [(rf"{any_block}feed_forward\.gate_up_proj_adapter_list\.{n}\.{at}\.", halves)]
            for part in "qkv":
                theirs = rf"{any_block}self_attn\.linear_{part}_adapter_list\.{n}\.{at}\."
                rules += [(theirs, f"{place}mixer.{part}_proj.{factor}.")]
    return Case(
        ("Zamba2", config),
        {"pattern": " ".join(texts), "norm_eps": ZAMBA_EPS, "mlp": "none", "tie_embeddings": True, "blocks": blocks},
        tuple(rules),
        place=places.__getitem__,
        copied=r"adapter_list\.\d+\.0\.",  # gate and up have one A in common
        scale={r"q_proj\.(?!A)": 2**0.5},  # theirs divides by (head_dim / 2)^1/2
    )


def _zamba_block(ours: str) -> list[tuple[str, str | tuple[str, ...]]]:
    return [
        (r"self_attn\.([qkvo]_proj)\.", f"{ours}mixer.{{}}."),
        (r"feed_forward\.gate_up_proj\.", (f"{ours}mlp.gate_proj.", f"{ours}mlp.up_proj.")),
        (r"feed_forward\.down_proj\.", f"{ours}mlp.down_proj."),
        (r"input_layernorm\.", f"{ours}norm."),
        (r"pre_ff_layernorm\.", f"{ours}mlp_norm."),
    ]


DENSE = {"num_experts": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 0}
CASES = {
    "jamba": jamba(3, 3, 1, DENSE, "mAm", kv_heads=2),
    "jamba, experts": jamba(4, 4, 3, SPARSE, "emeA", kv_heads=4),
    "granite": granite(2, 2, "MAM", tie=False, rope=False),
    "granite, rotary": granite(1, 1, "MMA", tie=True, rope=True),
    "nemotron": nemotron(2, 2, "M-M*-"),
    "nemotron, multi-query": nemotron(4, 1, "*-M"),
    "falcon": falcon(2, 2, heads=8, gated_norm=True, tie=False),
    "falcon, no norm": falcon(1, 4, heads=5, gated_norm=False, tie=True),
    "zamba2": zamba2("MHHMH", 2, 2, kv_heads=4, adapters=True, rope=True),
    "zamba2, one memory": zamba2("HMH", 1, 1, kv_heads=2, adapters=False, rope=False),
}


# ---------------------------------------------------------------------------------------------------------- both models
@cache
def theirs(case: str) -> nn.Module:
    """Theirs, random."""
    family, config = CASES[case].theirs
    torch.manual_seed(0)
    cls = getattr(hf, f"{family}ForCausalLM")
    model = cls._from_config(getattr(hf, f"{family}Config")(**config), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_values(name, parameter))
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # two of them bound dt from below, in a prefill only
    return model


def random_values(name: str, parameter: Tensor) -> Tensor:
    """Of a size that keeps every part audible: decays between 0.1 and 4, steps about 0.5, norms about 1.

    Weights of attention are kept even, so that roundings are not made larger from layer to layer.
    """
    noise = torch.randn(parameter.shape)
    if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
        return noise
    if parameter.ndim == 1:
        return 1 + 0.3 * noise
    if "embed" in name:
        return noise
    if re.search(r"(q_proj|k_proj|adapter_list\.\d\.1)\.weight", name):
        return 0.5 * noise * parameter.shape[-1] ** -0.5
    return noise * parameter.shape[-1] ** -0.5


def spec_of(case: str) -> dict[str, Any]:
    return {"d_model": D, "vocab_size": WORDS, "mlp": SWIGLU, "norm_eps": EPS} | CASES[case].spec


@cache
def ours(case: str) -> hl.HybridLM:
    """A model of the spec with their weights."""
    model = hl.build(spec_of(case)).eval()
    model.load_state_dict(weights(case))
    return model


@cache
def weights(case: str) -> dict[str, Tensor]:
    """Their weights under our names."""
    found: dict[str, Tensor] = {}
    for name, tensor in theirs(case).named_parameters():
        names = renamed(CASES[case], name)
        copied = len(names) == 1 or re.search(CASES[case].copied, name)
        parts = [tensor.detach()] * len(names) if copied else tensor.detach().chunk(2, dim=-2)
        found |= dict(zip(names, parts, strict=True))
    for pattern, factor in CASES[case].scale.items():
        found |= {name: factor * tensor for name, tensor in found.items() if re.search(pattern, name)}
    return found


def renamed(case: Case, name: str) -> list[str]:
    """Our names of one of theirs, by the first rule that fits."""
    for pattern, templates in (*AROUND, *((rf"model\.layers\.{pattern}", names) for pattern, names in case.rules)):
        if match := re.match(pattern, name):
            what = [str(case.place(int(group))) if group.isdigit() else group for group in match.groups()]
            templates = (templates,) if isinstance(templates, str) else templates
            return [template.format(*what) + name[match.end() :] for template in templates]
    raise AssertionError(f"nothing of ours is {name}")


@cache
@torch.no_grad()
def truth(case: str) -> tuple[Tensor, Tensor]:
    """Their logits, of one call, and of a prefill with single tokens after it."""
    out = theirs(case)(IDS[:, :-STEPS], use_cache=True)
    logits = [out.logits]
    for token in IDS[:, -STEPS:].split(1, dim=1):
        out = theirs(case)(token, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return theirs(case)(IDS, use_cache=False).logits, torch.cat(logits, dim=1)


@torch.no_grad()
def errors(case: str) -> Iterator[float]:
    """The worst logit: of one call against theirs; of a prefill, seven tokens more, and single ones, against theirs."""
    model, (whole, stepped) = ours(case), truth(case)
    scale = whole.square().mean().sqrt().item()
    yield (model(IDS).logits - whole).abs().max().item() / scale
    state, logits = model.init_state(len(IDS), IDS.shape[1]), []
    for part in IDS.split([IDS.shape[1] - STEPS - 7, 7, *[1] * STEPS], dim=1):
        out = model(part, state)
        state = out.state
        logits.append(out.logits)
    yield (torch.cat(logits, 1) - stepped).abs().max().item() / scale


@pytest.mark.parametrize("case", CASES)
def test_same_logits(case):
    assert max(errors(case)) < LIMIT


def kinds(case: str) -> list[str]:
    """One tensor of each kind: layers and places apart, one is as good as another."""
    model = hl.build(spec_of(case), device="meta")
    return list({re.sub(r"\d+", "#", name): name for name in model.state_dict()}.values())


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in kinds(case)])
def test_exchanged_entries_are_seen(case, name):
    """In one call, or where it is cut."""
    tensor = ours(case).state_dict()[name]
    held = tensor.clone()
    assert tensor.numel() > 1
    tensor.copy_(tensor.flatten().roll(1).view_as(tensor))
    try:
        assert any(error > 100 * LIMIT for error in errors(case))
    finally:
        tensor.copy_(held)
