"""Attention and sliding window against transformers' Llama and Mistral: whole models, every parameter randomised."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import hybridlm as hl

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
WINDOW = 7
LIMIT = 1e-5

NAMES = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
    **{
        f"blocks.{i}.{ours}": f"model.layers.{i}.{theirs}"
        for i in range(2)
        for ours, theirs in {
            "norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            **{f"mixer.{p}": f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")},
            **{f"mlp.{p}": f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")},
        }.items()
    },
}


def theirs(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW, head_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 + (parameter.ndim == 1))
    return model.eval()


def ours(family: str, model: torch.nn.Module) -> hl.HybridLM:
    mixer = {"type": "attention", "heads": 4, "kv_heads": 2, "rope": True, "rope_theta": 500.0}
    if family == "mistral":
        mixer |= {"type": "sliding_window", "window": WINDOW}
    blocks = {"A": {"mixer": mixer, "mlp": {"type": "swiglu", "width": 96}}}
    built = hl.build(pattern="A2", d_model=64, vocab_size=97, blocks=blocks).eval()
    given = model.state_dict()
    built.load_state_dict({f"{mine}.weight": given[f"{their}.weight"] for mine, their in NAMES.items()})
    return built


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", params=["llama", "mistral"])
def pair(request) -> tuple[hl.HybridLM, torch.nn.Module]:
    model = theirs(request.param)
    return ours(request.param, model), model


IDS = torch.randint(0, 97, (3, 29), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_against_transformers_prefill(pair):
    mine, their = pair
    assert error(mine(IDS).logits, their(IDS).logits) < LIMIT


@torch.no_grad()
def test_against_transformers_steps(pair):
    mine, their = pair
    state, cache = mine.init_state(3, 29), None
    for piece in IDS.split([11] + [1] * 18, dim=1):
        out = mine(piece, state=state)
        reply = their(piece, past_key_values=cache, use_cache=True)
        state, cache = out.state, reply.past_key_values
        assert error(out.logits, reply.logits) < LIMIT


@torch.no_grad()
def test_against_transformers_left_padding(pair):
    mine, their = pair
    valid = torch.arange(29) >= torch.tensor([0, 5, 13])[:, None]
    logits = their(IDS, attention_mask=valid.long(), position_ids=(valid.cumsum(1) - 1).clamp(min=0)).logits
    assert error(mine(IDS, valid=valid).logits[valid], logits[valid]) < LIMIT


@torch.no_grad()
@pytest.mark.parametrize("name", [f"{name}.weight" for name in NAMES])
def test_against_transformers_notices_a_permuted_tensor(pair, name):
    """The comparison is worth something only if it fails whenever one tensor is wrong."""
    mine, their = pair
    weight = dict(mine.named_parameters())[name]
    right = weight.clone()
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(2))
    weight.copy_(weight.flatten()[order].reshape(weight.shape))
    wrong = error(mine(IDS).logits, their(IDS).logits)
    weight.copy_(right)
    assert wrong > 100 * LIMIT
