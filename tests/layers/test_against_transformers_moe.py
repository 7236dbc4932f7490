"""moe against the mixtures of experts of transformers: Jamba, Granite, Mixtral, Qwen3-Next, DeepSeek-V3.

Every parameter is random first, the selection bias too. Worst error seen: 9e-8.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridMLP,
    GraniteMoeHybridMoE,
)
from transformers.models.jamba.modeling_jamba import JambaConfig, JambaSparseMoeBlock
from transformers.models.mixtral.modeling_mixtral import (
    MixtralConfig,
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextConfig, Qwen3NextSparseMoeBlock

from hybridlm.context import Context
from hybridlm.layers.moe import MoE

LIMIT = 1e-5
D_MODEL, EXPERTS, WIDTH, SHARED = 24, 6, 10, 14
SIZES = {"hidden_size": D_MODEL, "num_experts_per_tok": 2}


class Granite(torch.nn.Module):
    """What GraniteMoeHybridDecoderLayer does with its two halves."""

    def __init__(self):
        super().__init__()
        sizes = {"num_local_experts": EXPERTS, "intermediate_size": WIDTH, "shared_intermediate_size": SHARED}
        config = GraniteMoeHybridConfig(**SIZES, **sizes, mamba_n_heads=2)
        self.moe, self.shared = GraniteMoeHybridMoE(config), GraniteMoeHybridMLP(config)

    def forward(self, x):
        return self.moe(x) + self.shared(x)


def jamba():
    return JambaSparseMoeBlock(JambaConfig(**SIZES, num_experts=EXPERTS, intermediate_size=WIDTH))


def mixtral():
    return MixtralSparseMoeBlock(MixtralConfig(**SIZES, num_local_experts=EXPERTS, intermediate_size=WIDTH))


def qwen3_next():
    sizes = {"num_experts": EXPERTS, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": SHARED}
    return Qwen3NextSparseMoeBlock(Qwen3NextConfig(**SIZES, **sizes))


def deepseek_v3(normalize):
    sizes = {"n_routed_experts": EXPERTS, "moe_intermediate_size": SHARED, "n_shared_experts": 1}
    routing = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.7, "norm_topk_prob": normalize}
    return DeepseekV3MoE(DeepseekV3Config(**SIZES, **sizes, **routing))


SIGMOID = {"score": "sigmoid", "scale": 1.7, "shared_width": SHARED, "width": SHARED}
CASES = {
    "jamba": (jamba, {"normalize": False}),
    "mixtral": (mixtral, {}),
    "granite": (Granite, {"shared_width": SHARED}),
    "qwen3_next": (qwen3_next, {"shared_width": SHARED, "shared_gate": True}),
    "deepseek_v3": (lambda: deepseek_v3(True), SIGMOID),
    "deepseek_v3, not normalised": (lambda: deepseek_v3(False), {**SIGMOID, "normalize": False}),
}
NAMES = {
    "gate.weight": "router.weight",
    "router.weight": "router.weight",
    "moe.router.weight": "router.weight",
    "gate.e_score_correction_bias": "router.bias",
    "shared_expert_gate.weight": "shared_gate.weight",
    "shared.output_linear.weight": "shared.down_proj.weight",
}
PAIRS = {
    "experts.gate_up_proj": "experts.{}_proj.weight",
    "moe.experts.gate_up_proj": "experts.{}_proj.weight",
    "shared.input_linear.weight": "shared.{}_proj.weight",
}


def our_weights(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Their tensors under our names; what they hold in one, we hold in two."""
    weights = {}
    for name, tensor in theirs.state_dict().items():
        if name in PAIRS:
            gate, up = tensor.chunk(2, dim=-2)
            weights |= {PAIRS[name].format("gate"): gate, PAIRS[name].format("up"): up}
            continue
        plain = name.removeprefix("moe.").replace("shared_experts.", "shared.").replace("shared_expert.", "shared.")
        weights[NAMES.get(name, plain + ".weight" * plain.endswith("experts.down_proj"))] = tensor
    return weights


@torch.no_grad()
def make_pair(case: str) -> SimpleNamespace:
    torch.manual_seed(0)
    make, config = CASES[case]
    theirs = make().eval()
    for tensor in theirs.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * tensor.shape[-1] ** -0.5)
    ours = MoE(MoE.Config(**{"experts": EXPERTS, "width": WIDTH, **config}), D_MODEL)
    ours.load_state_dict(our_weights(theirs), strict=True)
    x = 2 * torch.randn(3, 17, D_MODEL)
    return SimpleNamespace(ours=ours, theirs=theirs, x=x, truth=theirs(x))


@torch.no_grad()
def error(pair: SimpleNamespace) -> float:
    """The worst token, against the size of them all."""
    wrong = (pair.ours(pair.x) - pair.truth).square().mean(-1).sqrt().max()
    return float(wrong / pair.truth.square().mean().sqrt())


@pytest.mark.parametrize("case", CASES)
def test_against_transformers_moe(case):
    assert error(make_pair(case)) < LIMIT


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in make_pair(case).ours.state_dict()]
)
def test_exchanged_entries_are_seen(case, name):
    pair = make_pair(case)
    tensor = pair.ours.state_dict()[name]
    assert tensor.numel() > 1
    tensor.copy_(tensor.flatten().roll(1).view_as(tensor))
    assert error(pair) > 100 * LIMIT


@pytest.mark.parametrize("padded", [False, True])
def test_balance_loss_of_transformers(padded):
    """Of one layer; theirs pools the layers of a model, ours adds them."""
    pair = make_pair("mixtral")
    valid = torch.arange(17) < torch.tensor([17, 9, 1])[:, None] if padded else None
    journal = []
    pair.ours(pair.x, Context(torch.arange(17).expand(3, 17), valid=valid, journal=journal))
    logits = pair.x.flatten(0, 1) @ pair.ours.router.weight.T
    truth = load_balancing_loss_func((logits,), EXPERTS, 2, valid)
    torch.testing.assert_close(journal[0].balance, 0.01 * truth)
