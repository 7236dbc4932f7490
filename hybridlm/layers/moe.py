"""A mixture of experts: every token chooses top_k of many MLPs.

    y = scale sum_{e in top_k(s)} g_e E_e(x) + E_shared(x),    s = softmax(W_r x) or sigmoid(W_r x)

    g_e = s_e, or s_e / sum of the chosen s

Shazeer et al. 2017 (arXiv:1701.06538), eq. 1; Fedus et al. 2021 (Switch, arXiv:2101.03961), eq. 1, 2 and 4; shared
experts: Dai et al. 2024 (DeepSeekMoE, arXiv:2401.06066), eq. 9; sigmoid scores and their bias: DeepSeek-V3
(arXiv:2412.19437), eq. 12 to 16. Differs from the papers: no token is ever dropped, no noise, no groups of experts.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridlm.checks import choice, flag, real, whole
from hybridlm.context import Context
from hybridlm.errors import SpecError
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mlp import GEGLU, GELU, MLP, ReLU2, SwiGLU
from hybridlm.layers.router import Router
from hybridlm.ops.experts import by_expert, grouped_linear

KINDS: dict[str, type[MLP]] = {"swiglu": SwiGLU, "geglu": GEGLU, "gelu": GELU, "relu2": ReLU2}
SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts.

    experts: how many there are, 1 to 4,096.
    top_k: how many a token chooses.
    width: hidden units of an expert; by default those of a token's experts, the shared one included, are together as
        many as an MLP without experts has.
    shared_width: hidden units of an MLP that every token goes through; 0 for none.
    shared_gate: the shared MLP's output is multiplied by sigmoid(w . x).
    expert: swiglu, geglu, gelu or relu2, of all.
    score: softmax over all experts, or a sigmoid for each.
    normalize: the weights of the chosen experts are divided by their sum.
    scale: factor of the weights.
    balance: coefficient of the balance loss.
    bias_rate: how far a step of training moves the bias that balances sigmoid scores.
    """

    experts: int = 8
    top_k: int = 2
    width: int | None = None
    shared_width: int = 0
    shared_gate: bool = False
    expert: str = "swiglu"
    score: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    balance: float = 0.01
    bias_rate: float = 0.0

    def resolve(self, d_model: int) -> "MoEConfig":
        """The width filled in, everything checked."""
        whole("experts", self.experts, high=4096)
        if whole("top_k", self.top_k) > self.experts:
            raise SpecError(f"top_k: {self.top_k} is more than experts = {self.experts}; use {self.experts} at most")
        kind = KINDS[choice("expert", self.expert, KINDS)]
        choice("score", self.score, SCORES)
        shared = whole("shared_width", self.shared_width, low=0)
        if flag("shared_gate", self.shared_gate) and not shared:
            raise SpecError("shared_gate: true, but shared_width is 0, so there is nothing to gate; give shared_width")
        rate = real("bias_rate", self.bias_rate, 0.0, 1.0)
        if rate and self.score != "sigmoid":
            raise SpecError(f"bias_rate: {rate} needs score: sigmoid, as softmax scores have no bias; use 0")
        flag("normalize", self.normalize)
        width = self._width(kind.Config().resolve(d_model).width) if self.width is None else self.width
        scale, balance = real("scale", self.scale, 1e-6, 1e6), real("balance", self.balance, 0.0, 1e6)
        return replace(self, width=whole("width", width), scale=scale, balance=balance, bias_rate=rate)

    def _width(self, dense: int) -> int:
        if self.shared_width >= dense:
            raise SpecError(f"width: give it, as shared_width = {self.shared_width} takes all of the default {dense}")
        return max(1, (dense - self.shared_width) // self.top_k)


class ExpertLinear(nn.Module):
    """A linear layer for each expert. weight: (experts, outputs, inputs)."""

    def __init__(self, experts: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x: Float[Tensor, "n i"], counts: Int[Tensor, "e"]) -> Float[Tensor, "n o"]:
        """x: the rows of the first expert, then those of the second, ..., as many as counts says."""
        return grouped_linear(x, self.weight, counts)


class Experts(nn.Module):
    """MLPs side by side, each for the rows that chose it."""

    residual_projections: ClassVar[tuple[str, ...]] = ("down_proj",)

    def __init__(self, config: MoEConfig, d_model: int):
        super().__init__()
        self.kind = KINDS[config.expert]
        if self.kind.gated:
            self.gate_proj = ExpertLinear(config.experts, d_model, config.width)
        self.up_proj = ExpertLinear(config.experts, d_model, config.width)
        self.down_proj = ExpertLinear(config.experts, config.width, d_model)

    def reset_parameters(self, streams: Streams) -> None:
        """Each matrix as that of a linear layer."""
        for name, layer in self.named_children():
            init.normal(layer.weight, (3 * layer.weight.shape[-1]) ** -0.5, streams(f"{name}.weight"))

    def forward(self, x: Float[Tensor, "n d"], counts: Int[Tensor, "e"]) -> Float[Tensor, "n d"]:
        """As ExpertLinear."""
        gate = self.gate_proj(x, counts) if self.kind.gated else None
        return self.down_proj(self.kind.hidden(self.up_proj(x, counts), gate), counts)


class MoE(nn.Module):
    """A mixture of experts: top-k routing that drops no token, shared experts, a balance loss."""

    Config: ClassVar[type] = MoEConfig
    reads_context: ClassVar[bool] = True

    def __init__(self, config: MoEConfig, d_model: int):
        super().__init__()
        self.config = c = config.resolve(d_model)
        self.router = Router(c, d_model)
        self.experts = Experts(c, d_model)
        kind = KINDS[c.expert]
        self.shared = kind(kind.Config(width=c.shared_width), d_model) if c.shared_width else None
        self.shared_gate = Linear(d_model, 1, bias=False) if c.shared_gate else None
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Initial values of every part."""
        streams = streams or Streams.drawn()
        self.router.reset_parameters(streams.at("router"))
        self.experts.reset_parameters(streams.at("experts"))
        if self.shared is not None:
            self.shared.reset_parameters(streams.at("shared"))
        if self.shared_gate is not None:
            init.linear(self.shared_gate, streams, "shared_gate")

    def forward(self, x: Float[Tensor, "b t d"], ctx: Context | None = None) -> Float[Tensor, "b t d"]:
        """(b, t, d) -> the same, each token for itself; with a journal, what was chosen is written there."""
        x = x if ctx is None else ctx.keep_valid(x)
        chosen, weights, scores = self.router(x)
        if ctx is not None and ctx.journal is not None:
            ctx.journal.append(self.router.record(chosen, scores, ctx.valid))
        y = self.routed(x.flatten(0, 1), chosen.flatten(0, 1), weights.flatten(0, 1)).view_as(x)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else shared * torch.sigmoid(self.shared_gate(x)))

    def routed(
        self, x: Float[Tensor, "n d"], chosen: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n d"]:
        """Rows sorted by expert, through the experts, back to their tokens, and added up."""
        order, counts = by_expert(chosen, self.config.experts)
        y = self.experts(x[order // self.config.top_k], counts)
        choices = y[order.argsort()].unflatten(0, chosen.shape)
        return (choices * weights[:, :, None]).sum(dim=1).to(y.dtype)

    @classmethod
    def cost(cls, config: MoEConfig, d_model: int) -> Cost:
        """All experts are held; a token pays for top_k of them."""
        matrix = d_model * config.width * (3 if KINDS[config.expert].gated else 2)
        shared = d_model * config.shared_width * (3 if KINDS[config.expert].gated else 2) + d_model * config.shared_gate
        around = d_model * config.experts + shared
        active = around + config.top_k * matrix
        return Cost(around + config.experts * matrix, lambda tokens, past: linear(tokens, active, 1), active=active)
