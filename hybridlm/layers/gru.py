"""GRU: a recurrent network with two gates and no cell of its own; a baseline beside the LSTM.

    h_t = (1 - z_t) * n_t + z_t * h_{t-1},    n_t = tanh(W_n u_t + b_n + r_t * (U_n h_{t-1} + b_u))
    [r_t, z_t] = sigma(W u_t + U h_{t-1} + b)
    out_t = W_out h_t

Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (2014, arXiv:1406.1078): eq. 5 to 8. The gates see
h_{t-1}, so no parallel form exists: the tokens of a row go through one after the other. Differs from the paper: r acts
after the product U_n h and not before it, as in torch.nn.GRU and cuDNN; W_out leads back to the residual stream.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.checks import whole
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.ops.rnn import gru
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """hidden: width of h; default 7/8 of d_model, which takes 5.8 d_model^2 weights, about as many as Mamba-2."""

    hidden: int | None = None

    def resolve(self, d_model: int) -> "GRUConfig":
        """The default filled in, the width checked."""
        return replace(self, hidden=whole("hidden", -(-7 * d_model // 8) if self.hidden is None else self.hidden))


@dataclass
class GRUState(LayerState):
    """The last h, (b, hidden), float32 or float64."""

    kind = "gru"
    h: Tensor


class GRU(Mixer):
    """Gated recurrent unit: gates that see the last output; a baseline, computed token by token."""

    Config = GRUConfig
    State = GRUState
    letter = "g"
    recurrent = True
    residual_projections = ("out_proj",)

    def __init__(self, config: GRUConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        hidden = self.config.hidden
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden, d_model))  # names and order of gates are torch.nn.GRU's
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden))
        self.out_proj = Linear(hidden, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Matrices as every linear layer's, biases 0."""
        streams = streams or Streams.drawn()
        init.normal(self.weight_ih, (3 * self.d_model) ** -0.5, streams("weight_ih"))
        init.normal(self.weight_hh, (3 * self.config.hidden) ** -0.5, streams("weight_hh"))
        init.fill(self.bias_ih, torch.zeros(self.bias_ih.shape))
        init.fill(self.bias_hh, torch.zeros(self.bias_hh.shape))
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> GRUState:
        dtype = state_dtype(dtype or torch.get_default_dtype())
        return GRUState(torch.zeros(batch, self.config.hidden, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t d"], state: GRUState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], GRUState | None]:
        x, ctx = self.enter(x, state, ctx)
        y, h = gru(
            x,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            state=None if state is None else state.h,
            lengths=ctx.lengths,
            document=ctx.document,
        )
        return self.out_proj(y), None if state is None else state.advance(h=h)

    @classmethod
    def cost(cls, config: GRUConfig, d_model: int) -> Cost:
        """Scan FLOPs of a token and hidden unit: 2 sums in front of r and z, 2 for n, 3 for h."""
        hidden = config.hidden
        matrices = 3 * hidden * (d_model + hidden) + hidden * d_model
        return Cost(
            matrices + 6 * hidden,
            lambda tokens, past: linear(tokens, matrices, 1) + Flops(scan=7 * tokens * hidden),
            lambda max_length, itemsize: StateBytes(ssm=hidden * max(4, itemsize)),
        )
