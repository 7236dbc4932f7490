"""RWKV-7: a matrix for a state that fades channel by channel, and unlearns what it held under a key while it learns.

    S_t = S_{t-1} (diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t,    y_t = S_t r_t        head by head
    w_t = exp(-e^{-1/2} sigma(d_t)),    kappa_t = (xi * k'_t) / |xi * k'_t|,    k_t = k'_t * (1 + (a_t - 1) alpha)
    out_t = W_o (g_t * (LayerNorm(y_t) + (r_t . (rho * k_t)) v_t))
    r, k', v linear, d, a = sigma(.), g low-rank functions of x_t + mu (x_{t-1} - x_t), with mu of their own

Peng et al., RWKV-7 "Goose" with Expressive Dynamic State Evolution (2025, arXiv:2503.14456): eq. 2 to 22, the time
mixing alone, as a block has an MLP of its own. Differs from the paper: no value residual (eq. 8 to 10), as a mixer does
not see the values of the first layer; kappa is divided by sqrt(|.|^2 + 1e-6); vectors start as the paper's code has
them in the first layer, matrices as every linear layer.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import divides, largest_divisor, whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.layers.wide_linear import WideLinear
from hybridlm.ops.causal_conv import causal_conv1d
from hybridlm.ops.generalized_delta_rule import generalized_delta_rule, generalized_delta_rule_flops
from hybridlm.ops.norm import group_norm, l2_norm
from hybridlm.state import LayerState

FASTEST = -math.exp(-0.5)
"""The logarithm of the fastest decay, eq. 12."""

SHIFTS = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
"""mu of eq. 3, one vector for each of r, w, k, v, a, g: 1 - (i / d)^power at first."""


@dataclass(frozen=True, kw_only=True)
class RWKV7Config:
    """A matrix-valued state (p, p) a head; the heads make up d_model.

    head_dim: width p of a head, a divisor of d_model; 1 has nothing to normalise. Default: about d_model / 64 heads.
    w_rank, a_rank: width of the bottleneck of decays and of learning rates; default 2.5 sqrt(d_model), in steps of 32.
    g_rank: the same of the output gate; default 5 sqrt(d_model), in steps of 32.
    chunk: tokens of a chunk of the recurrence; changes speed, not results.
    """

    head_dim: int | None = None
    w_rank: int | None = None
    a_rank: int | None = None
    g_rank: int | None = None
    chunk: int = 32

    def resolve(self, d_model: int) -> "RWKV7Config":
        """Every default filled in, every shape checked."""
        head_dim = d_model // largest_divisor(d_model, max(1, d_model // 64))
        head_dim = whole("head_dim", head_dim if self.head_dim is None else self.head_dim, low=2)
        divides("head_dim", head_dim, "d_model", d_model)
        return replace(
            self,
            head_dim=head_dim,
            w_rank=whole("w_rank", _rank(2.5, d_model) if self.w_rank is None else self.w_rank),
            a_rank=whole("a_rank", _rank(2.5, d_model) if self.a_rank is None else self.a_rank),
            g_rank=whole("g_rank", _rank(5, d_model) if self.g_rank is None else self.g_rank),
            chunk=whole("chunk", self.chunk, low=2, high=4096),
        )


def _rank(factor: float, d_model: int) -> int:
    """factor sqrt(d_model), rounded to a multiple of 32, as the paper's code does."""
    return 32 * max(1, math.ceil(factor * d_model**0.5 / 32 - 0.5))


@dataclass
class RWKV7State(LayerState):
    """shift: the last token, (b, d), compute dtype. ssm: S of every head, (b, h, p, p), float32 or float64."""

    kind = "rwkv7"
    shift: Tensor
    ssm: Tensor


class RWKV7(Mixer):
    """Generalised delta rule with a decay a channel (RWKV-7, Goose): linear in time, it can track state."""

    Config = RWKV7Config
    State = RWKV7State
    letter = "R"
    recurrent = True
    param_groups: ClassVar = {"r_k": {"weight_decay": 0.0}}
    residual_projections = ("out_proj",)

    def __init__(self, config: RWKV7Config, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        c, heads = self.config, d_model // self.config.head_dim
        for name in SHIFTS:
            self.register_parameter(name, nn.Parameter(torch.empty(d_model)))
        self.r_proj = Linear(d_model, d_model, bias=False)
        self.k_proj = Linear(d_model, d_model, bias=False)
        self.v_proj = Linear(d_model, d_model, bias=False)
        self.decay = LowRank(d_model, nn.Tanh(), WideLinear(c.w_rank, d_model))
        self.rate = LowRank(d_model, nn.Identity(), WideLinear(c.a_rank, d_model))
        self.gate = LowRank(d_model, nn.Sigmoid(), Linear(c.g_rank, d_model, bias=False))
        self.k_k = nn.Parameter(torch.empty(d_model))  # xi, alpha and rho of eq. 6, 7 and 20
        self.k_a = nn.Parameter(torch.empty(d_model))
        self.r_k = nn.Parameter(torch.empty(heads, c.head_dim))
        self.norm = HeadNorm(d_model, 64 * eps, heads)  # as in the paper's code, whatever the width of a head
        self.out_proj = Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Memories from 10 to 1000 tokens; decay and learning rate are the same for every token at first."""
        streams, place = streams or Streams.drawn(), torch.arange(self.d_model, dtype=torch.float64)
        for name, power in SHIFTS.items():
            init.fill(getattr(self, name), 1 - (place / self.d_model) ** power)
        for name in ("r_proj", "k_proj", "v_proj", "out_proj"):
            init.linear(getattr(self, name), streams, name)
        for name in ("decay", "rate", "gate"):
            getattr(self, name).reset_parameters(streams.at(name))
        init.fill(self.decay.up.bias, 5 * (place / max(1, self.d_model - 1)) ** 0.85 - 6.5)
        init.fill(self.k_k, torch.full(self.k_k.shape, 0.85))
        init.fill(self.k_a, torch.ones(self.k_a.shape))
        init.fill(self.r_k, torch.zeros(self.r_k.shape))
        self.norm.reset_parameters()

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> RWKV7State:
        p, dtype = self.config.head_dim, dtype or torch.get_default_dtype()
        return RWKV7State(
            torch.zeros(batch, self.d_model, device=device, dtype=dtype),
            torch.zeros(batch, self.d_model // p, p, p, device=device, dtype=state_dtype(dtype)),
        )

    def forward(
        self, x: Float[Tensor, "b t d"], state: RWKV7State | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], RWKV7State | None]:
        x, ctx = self.enter(x, state, ctx)
        back, shift = steps_back(x, None if state is None else state.shift, ctx)
        r, w, k, v, a, g = (x + back * getattr(self, name) for name in SHIFTS)
        r, k, v = self.heads(self.r_proj(r)), self.k_proj(k), self.heads(self.v_proj(v))
        decay = FASTEST * torch.sigmoid(self.decay(w))
        a = torch.sigmoid(self.rate(a))
        kappa = l2_norm(self.heads(k * self.k_k), 1e-6)
        k = self.heads(k * (1 + (a - 1) * self.k_a))
        kappa, k, decay = ctx.keep_valid(kappa), ctx.keep_valid(k), ctx.keep_valid(decay)  # a pad holds the state
        y, ssm = generalized_delta_rule(
            r,
            k,
            v,
            -kappa,
            self.heads(a) * kappa,
            self.heads(decay),
            state=None if state is None else state.ssm,
            document=ctx.document,
            chunk=self.config.chunk,
        )
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        y = self.norm(rearrange(y, "b t h p -> b t (h p)")) + rearrange(bonus, "b t h p -> b t (h p)")
        y = self.out_proj((y * self.gate(g)).to(x.dtype))
        return y, None if state is None else state.advance(shift=shift, ssm=ssm)

    def heads(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t h p"]:
        """Channels by head."""
        return rearrange(x, "b t (h p) -> b t h p", p=self.config.head_dim)

    @classmethod
    def cost(cls, config: RWKV7Config, d_model: int) -> Cost:
        """FLOPs of the recurrence as `generalized_delta_rule_flops` counts them."""
        c, heads = config, d_model // config.head_dim
        matrices = d_model * (4 * d_model + 2 * (c.w_rank + c.a_rank + c.g_rank))

        def forward(tokens: int, past: int) -> Flops:
            heart = generalized_delta_rule_flops(tokens, heads, c.head_dim, c.head_dim, c.chunk)
            return linear(tokens, matrices, 1) + Flops(*heart)

        return Cost(
            matrices + 13 * d_model,
            forward,
            lambda max_length, itemsize: StateBytes(ssm=d_model * (itemsize + c.head_dim * max(4, itemsize))),
        )


def steps_back(
    x: Float[Tensor, "b t d"], last: Float[Tensor, "b d"] | None, ctx: Context
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"]]:
    """x_{t-1} - x_t, where nothing stands before a document; and the last token, which a next call looks back on."""
    taps = F.pad(x.new_ones(x.shape[-1], 1, 1), (0, 1))  # of a convolution: 1 for the token before, 0 for the present
    held = None if last is None else last[..., None]
    before, held = causal_conv1d(x, taps, None, state=held, lengths=ctx.lengths, document=ctx.document)
    return before - x, held.squeeze(-1)


class LowRank(nn.Module):
    """B f(A x) + lambda, eq. 2."""

    def __init__(self, width: int, f: nn.Module, up: nn.Linear):
        super().__init__()
        self.down = Linear(width, up.in_features, bias=False)
        self.f, self.up = f, up

    def reset_parameters(self, streams: Streams) -> None:
        """A is 0: at first the result does not depend on x. B as every linear layer, lambda 0."""
        init.fill(self.down.weight, torch.zeros(self.down.weight.shape))
        init.linear(self.up, streams, "up")

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.up(self.f(self.down(x)))


class HeadNorm(nn.Module):
    """LayerNorm of each head apart, eq. 21."""

    def __init__(self, width: int, eps: float, heads: int):
        super().__init__()
        self.eps, self.heads = eps, heads
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        """Weights 1, biases 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return group_norm(x, self.weight, self.bias, self.eps, self.heads)
