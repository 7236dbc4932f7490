"""LSTM: the recurrent network that state spaces and linear attention are measured against.

    c_t = f_t * c_{t-1} + i_t * g_t,    h_t = o_t * tanh(c_t)
    [i_t, f_t, o_t] = sigma(W u_t + U h_{t-1} + b),    g_t = tanh(W_g u_t + U_g h_{t-1} + b_g)
    out_t = W_out h_t

Hochreiter and Schmidhuber, Long Short-Term Memory (1997, doi:10.1162/neco.1997.9.8.1735), with the forget gate of Gers,
Schmidhuber and Cummins (2000). The gates see h_{t-1}, so no parallel form exists: the tokens of a row go through one
after the other. Differs from the paper: one layer without peepholes, as torch.nn.LSTM; the forget gate's bias starts at
1 (Jozefowicz, Zaremba and Sutskever 2015); W_out leads back to the residual stream.
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
from hybridlm.ops.rnn import lstm
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """hidden: width of h and c; default 3/4 of d_model, which takes 6 d_model^2 weights as Mamba-2 does."""

    hidden: int | None = None

    def resolve(self, d_model: int) -> "LSTMConfig":
        """The default filled in, the width checked."""
        return replace(self, hidden=whole("hidden", -(-3 * d_model // 4) if self.hidden is None else self.hidden))


@dataclass
class LSTMState(LayerState):
    """The last h and c, (b, hidden) each, float32 or float64."""

    kind = "lstm"
    h: Tensor
    c: Tensor


class LSTM(Mixer):
    """Long short-term memory: gates that see the last output; a baseline, computed token by token."""

    Config = LSTMConfig
    State = LSTMState
    letter = "r"
    recurrent = True
    residual_projections = ("out_proj",)

    def __init__(self, config: LSTMConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        hidden = self.config.hidden
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, d_model))  # names and order of gates are torch.nn.LSTM's
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        self.out_proj = Linear(hidden, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """Matrices as every linear layer's, biases 0, but 1 for the forget gate."""
        streams = streams or Streams.drawn()
        init.normal(self.weight_ih, (3 * self.d_model) ** -0.5, streams("weight_ih"))
        init.normal(self.weight_hh, (3 * self.config.hidden) ** -0.5, streams("weight_hh"))
        forget = torch.tensor([0.0, 1.0, 0.0, 0.0])  # of i, f, g, o: at first what is in the cell is kept
        init.fill(self.bias_ih, forget.repeat_interleave(self.config.hidden))
        init.fill(self.bias_hh, torch.zeros(self.bias_hh.shape))
        init.linear(self.out_proj, streams, "out_proj")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> LSTMState:
        dtype = state_dtype(dtype or torch.get_default_dtype())
        return LSTMState(*(torch.zeros(batch, self.config.hidden, device=device, dtype=dtype) for _ in range(2)))

    def forward(
        self, x: Float[Tensor, "b t d"], state: LSTMState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], LSTMState | None]:
        x, ctx = self.enter(x, state, ctx)
        y, (h, c) = lstm(
            x,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            state=None if state is None else (state.h, state.c),
            lengths=ctx.lengths,
            document=ctx.document,
        )
        return self.out_proj(y), None if state is None else state.advance(h=h, c=c)

    @classmethod
    def cost(cls, config: LSTMConfig, d_model: int) -> Cost:
        """Scan FLOPs of a token and hidden unit: 4 sums in front of the gates, 3 for c, 1 for h."""
        hidden = config.hidden
        matrices = 4 * hidden * (d_model + hidden) + hidden * d_model
        return Cost(
            matrices + 8 * hidden,
            lambda tokens, past: linear(tokens, matrices, 1) + Flops(scan=8 * tokens * hidden),
            lambda max_length, itemsize: StateBytes(ssm=2 * hidden * max(4, itemsize)),
        )
