"""A small but complete mixer, the host of the seeded bugs: a short convolution, then a selective state space.

    H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T,    y_t = H_t C_t + D x_t      head by head; heads of a group share B, C

It keeps every law. Its parts are small methods, so that a mutant overrides one of them and nothing else.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.state import LayerState

HEADS, GROUPS, N, K = 4, 2, 4, 4


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    def resolve(self, d_model):
        return self


@dataclass
class ToyState(LayerState):
    kind = "toy"
    conv: torch.Tensor  # (b, K - 1, c), the last inputs of the convolution
    ssm: torch.Tensor  # (b, h, p, N)


class Conv(nn.Module):
    """Causal depthwise convolution and SiLU, over documents, from a state."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels, K)), nn.Parameter(torch.empty(channels))

    def forward(self, x, past, ctx):
        full = torch.cat([past.to(x.dtype), x], dim=1)
        taps = self.within(full.unfold(1, K, 1), ctx)
        return F.silu((taps * self.weight).sum(-1) + self.bias), self.keep(full, x, ctx)

    def within(self, taps, ctx):
        """taps (b, t, c, K) with zeros where they are of another document."""
        if ctx.document is None:
            return taps
        mine = self.documents(ctx).unfold(1, K, 1) == ctx.document[..., None]
        return torch.where(mine[:, :, None], taps, 0)

    def documents(self, ctx):
        """(b, K - 1 + t): the document of every input; what the state holds is of document 0."""
        return F.pad(ctx.document, (K - 1, 0))

    def keep(self, full, x, ctx):
        """The last K - 1 valid inputs of the last document."""
        lengths = self.lengths(x, ctx)
        index = lengths[:, None] + torch.arange(K - 1)
        kept = full.gather(1, index[..., None].expand(-1, -1, full.shape[2]))
        if ctx.document is None:
            return kept
        mine = self.documents(ctx).gather(1, index) == ctx.document[:, -1:]
        return torch.where(mine[..., None], kept, 0)

    def lengths(self, x, ctx):
        return torch.full((len(x),), x.shape[1]) if ctx.lengths is None else ctx.lengths


class Toy(Mixer):
    Config, State, recurrent = ToyConfig, ToyState, True
    param_groups = {name: {"weight_decay": 0.0} for name in ("A_log", "D", "dt_bias")}
    residual_projections = ("out_proj",)
    conv_class = Conv

    def __init__(self, config, d_model, *, eps=1e-5):
        super().__init__(config, d_model)
        self.widths = [d_model + 2 * GROUPS * N, HEADS]
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv = self.conv_class(self.widths[0])
        self.A_log, self.D, self.dt_bias = (nn.Parameter(torch.empty(HEADS)) for _ in range(3))
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def reset_parameters(self, streams=None):
        streams = streams or Streams.drawn()
        for name in ("in_proj", "out_proj"):
            init.linear(getattr(self, name), streams, name)
        init.uniform(self.conv.weight, -0.5, 0.5, streams("conv.weight"))
        init.fill(self.conv.bias, torch.zeros(self.conv.bias.shape))
        init.fill(self.A_log, torch.arange(1, HEADS + 1).log())
        init.fill(self.D, torch.ones(HEADS))
        init.fill(self.dt_bias, init.inverse_softplus(init.log_uniform((HEADS,), 1e-3, 1e-1, streams("dt_bias"))))

    def init_state(self, batch, max_length, *, device=None, dtype=None):
        dtype = dtype or torch.get_default_dtype()
        conv = torch.zeros(batch, K - 1, self.widths[0], device=device, dtype=dtype)
        shape = (batch, HEADS, self.d_model // HEADS, N)
        return self.State(conv, torch.zeros(shape, device=device, dtype=state_dtype(dtype)))

    def forward(self, x, state=None, ctx=None):
        x, ctx = self.enter(x, state, ctx)
        begin = state or self.init_state(len(x), 1, device=x.device, dtype=x.dtype)
        xBC, dt = self.in_proj(x).split(self.widths, dim=-1)
        xBC, conv = self.conv(xBC, self.past(begin.conv, x), ctx)
        x, B, C = self.split(xBC)
        dt = self.pass_over(self.step_size(dt, x), ctx)
        H = self.past(begin.ssm, x)
        y, H = self.step(x, dt, B, C, H, ctx) if x.shape[1] == 1 else self.scan(x, dt, B, C, H, ctx)
        y = self.project(y.flatten(2).to(xBC.dtype))
        return y, None if state is None else state.advance(conv=conv, ssm=H)

    def past(self, tensor, x):
        """What the state holds of the past."""
        return tensor

    def split(self, xBC):
        """x (b, t, h, p); B, C (b, t, h, N), each group's for its heads; in at least float32."""
        x, B, C = xBC.to(state_dtype(xBC.dtype)).split([self.d_model, GROUPS * N, GROUPS * N], dim=-1)
        B, C = (v.unflatten(-1, (GROUPS, N)).repeat_interleave(HEADS // GROUPS, dim=2) for v in (B, C))
        return x.unflatten(-1, (HEADS, -1)), B, C

    def step_size(self, dt, x):
        return F.softplus(dt.to(x.dtype) + self.dt_bias.to(x.dtype))

    def pass_over(self, dt, ctx):
        """A step of size 0 passes over a pad."""
        return ctx.keep_valid(dt)

    def rate(self, dtype):
        return -self.A_log.to(dtype).exp()

    def step(self, x, dt, B, C, H, ctx):
        """One token."""
        x, dt, B, C = (v[:, 0] for v in (x, dt, B, C))
        H = ctx.carried(H)
        H = torch.exp(dt * self.rate(dt.dtype))[..., None, None] * H
        H = H + dt[..., None, None] * x[..., None] * B[:, :, None]
        y = (H @ C[..., None])[..., 0] + self.D.to(x.dtype)[:, None] * x
        return y[:, None], H

    def scan(self, x, dt, B, C, H, ctx):
        """Many tokens at once, as attention with a decay: every pair (i, j) of the same document, j <= i."""
        rates = dt * self.rate(dt.dtype)
        document = torch.zeros(dt.shape[:2], dtype=torch.int64) if ctx.document is None else ctx.document
        decay = self.decay(rates, document)
        scores = torch.einsum("bihn,bjhn->bijh", C, B) * decay * dt[:, None]
        y = torch.einsum("bijh,bjhp->bihp", scores, x)
        reach = rates.cumsum(1).exp() * (document == 0)[..., None]
        y = y + torch.einsum("bihn,bhpn->bihp", C, H) * reach[..., None] + self.D.to(x.dtype)[:, None] * x
        return y, self.final(x, dt, B, H, rates, decay[:, -1], ctx)

    def decay(self, rates, document):
        """(b, i, j, h): exp(sum of dt A from j + 1 to i), 0 where i does not see j. A sum, not a difference of sums."""
        steps = torch.arange(rates.shape[1])
        seen = (document[:, :, None] == document[:, None]) & (steps <= steps[:, None])
        later = rates[:, :, None].masked_fill((steps >= steps[:, None])[..., None], 0)
        return later.cumsum(1).masked_fill(~seen[..., None], -torch.inf).exp()

    def final(self, x, dt, B, H, rates, reach, ctx):
        """The state after the last token, of the last document. reach (b, j, h): what is left there of token j."""
        H = ctx.carried(H) * rates.sum(1).exp()[..., None, None]
        return H + torch.einsum("bjh,bjhp,bjhn->bhpn", reach * dt, x, B)

    def project(self, y):
        return self.out_proj(y)

    @classmethod
    def cost(cls, config, d_model):
        channels = d_model + 2 * GROUPS * N
        matrices = d_model * (channels + HEADS + d_model)
        parameters = matrices + channels * (K + 1) + 3 * HEADS
        p = d_model // HEADS

        def products(tokens):
            if tokens == 1:
                return 2 * d_model * N
            pairs, ends = tokens * tokens * (N + p), 2 * tokens * p * N
            return 2 * HEADS * (pairs + ends)

        return Cost(
            parameters,
            lambda tokens, past: linear(tokens, matrices, 1) + Flops(matmul=products(tokens)),
            lambda length, size: StateBytes(ssm=(K - 1) * channels * size + d_model * N * max(4, size)),
        )
