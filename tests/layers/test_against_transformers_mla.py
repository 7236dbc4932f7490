"""mla against DeepSeek-V3's attention in transformers: prefill, single tokens with its cache, chunks.

Every parameter is random first. Rows of the rotated parts are put into our order of pairs. Worst error seen: 4.5e-7.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3Config,
    DeepseekV3RotaryEmbedding,
)

from hybridlm.layers.mla import LatentAttention

LIMIT = 1e-5
D_MODEL, TOKENS, EPS = 24, 25, 1e-6
SIZES = {"heads": 3, "kv_rank": 10, "nope_dim": 6, "rope_dim": 4, "v_dim": 5, "rope_theta": 500.0}
CASES = {
    "query rank": SIZES | {"q_rank": 7},
    "no query rank": SIZES,
    "latent narrower than a head": SIZES | {"kv_rank": 3, "v_dim": 9},
}
SPLITS = {"one call": [25], "single tokens": [20, *[1] * 5], "chunks": [1, 7, 2, 11, 4]}


def make_theirs(c: dict) -> SimpleNamespace:
    config = DeepseekV3Config(
        hidden_size=D_MODEL,
        num_attention_heads=c["heads"],
        num_key_value_heads=c["heads"],
        q_lora_rank=c.get("q_rank"),
        kv_lora_rank=c["kv_rank"],
        qk_nope_head_dim=c["nope_dim"],
        qk_rope_head_dim=c["rope_dim"],
        v_head_dim=c["v_dim"],
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
        attn_implementation="eager",
    )
    return SimpleNamespace(
        config=config, layer=DeepseekV3Attention(config, 0).eval(), rotary=DeepseekV3RotaryEmbedding(config)
    )


def our_weights(theirs: torch.nn.Module, c: dict) -> dict[str, torch.Tensor]:
    """Their tensors under our names, pairs (2i, 2i + 1) at (i, i + p/2), W_UK and W_UV apart."""
    given, n, p = dict(theirs.state_dict()), c["nope_dim"], c["rope_dim"]
    pairs = torch.cat([torch.arange(0, p, 2), torch.arange(1, p, 2)])
    q = given.pop("q_b_proj.weight" if "q_rank" in c else "q_proj.weight").unflatten(0, (c["heads"], n + p))
    down, up = given.pop("kv_a_proj_with_mqa.weight"), given.pop("kv_b_proj.weight").unflatten(0, (c["heads"], -1))
    names = {"q_a_proj": "q_down", "q_a_layernorm": "q_norm", "kv_a_layernorm": "kv_norm", "o_proj": "o_proj"}
    return {
        "q_proj.weight": q[:, torch.cat([torch.arange(n), n + pairs])].flatten(0, 1),
        "kv_down.weight": down[torch.cat([torch.arange(c["kv_rank"]), c["kv_rank"] + pairs])],
        "k_up": up[:, :n],
        "v_up": up[:, n:],
        **{f"{names[name.removesuffix('.weight')]}.weight": tensor for name, tensor in given.items()},
    }


@torch.no_grad()
def make_pair(case: str) -> SimpleNamespace:
    torch.manual_seed(0)
    theirs = make_theirs(CASES[case])
    for parameter in theirs.layer.parameters():
        noise = torch.randn(parameter.shape)
        parameter.copy_(1 + 0.5 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    ours = LatentAttention(LatentAttention.Config(**CASES[case]), D_MODEL, eps=EPS)
    ours.load_state_dict(our_weights(theirs.layer, CASES[case]), strict=True)
    return SimpleNamespace(ours=ours, theirs=theirs, x=2 * torch.randn(2, TOKENS, D_MODEL))


@torch.no_grad()
def play_theirs(theirs: SimpleNamespace, x: torch.Tensor, split: list[int]) -> torch.Tensor:
    cache, ys, past = DynamicCache(config=theirs.config), [], 0
    for piece in x.split(split, dim=1):
        steps = torch.arange(past, past + piece.shape[1])
        hidden = torch.arange(past + piece.shape[1]) > steps[:, None]
        mask = torch.zeros(1, 1, *hidden.shape).masked_fill(hidden, -torch.inf)
        angles = theirs.rotary(piece, steps[None].expand(2, -1))
        ys.append(theirs.layer(piece, angles, mask, past_key_values=cache)[0])
        past += piece.shape[1]
    return torch.cat(ys, dim=1)


@torch.no_grad()
def play_ours(mixer: LatentAttention, x: torch.Tensor, split: list[int]) -> torch.Tensor:
    state, ys = mixer.init_state(2, TOKENS), []
    for piece in x.split(split, dim=1):
        y, state = mixer(piece, state)
        ys.append(y)
    return torch.cat(ys, dim=1)


def error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """The worst token."""
    return float((ours - truth).square().mean(-1).sqrt().max() / truth.square().mean().sqrt())


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_against_transformers_mla(case, split):
    pair = make_pair(case)
    truth = play_theirs(pair.theirs, pair.x, split)
    assert error(play_ours(pair.ours, pair.x, split), truth) < LIMIT
    with torch.no_grad():
        assert error(pair.ours(pair.x)[0], truth) < LIMIT


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in make_pair(case).ours.state_dict()]
)
def test_exchanged_entries_are_seen(case, name):
    pair = make_pair(case)
    truth = play_theirs(pair.theirs, pair.x, SPLITS["one call"])
    tensor = pair.ours.state_dict()[name]
    tensor.copy_(tensor.flatten().roll(1).view_as(tensor))
    for split in SPLITS.values():
        assert error(play_ours(pair.ours, pair.x, split), truth) > 100 * LIMIT
