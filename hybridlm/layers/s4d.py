"""S4D, the diagonal state space layer: S4 without the low-rank part, a sum of damped oscillations a channel.

    h_t = Abar h_{t-1} + Bbar u_t,    y_t = C h_t + D u_t,    A = diag(Lambda)        channel by channel, N states each
    Abar = e^(dt Lambda),  Bbar = (Abar - 1) / Lambda B   (zoh)    or as S4's   (bilinear)
    out_t = a_t * sigmoid(g_t),    [a_t, g_t] = W gelu(y_t) + b

Gu, Gupta, Goel, Re, On the Parameterization and Initialization of Diagonal State Space Models (2022, arXiv:2206.11893):
sections 3 and 4, theorem 3. Differs from the paper's code: B is a parameter of its own, not a factor of C; no dropout.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import choice, interval, paired, real
from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes, linear
from hybridlm.layers.diagonal import GROUPS, INITS, DiagonalSSM
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.mixer import Mixer, state_dtype
from hybridlm.ops.diagonal_ssm import RULES, diagonal_flops
from hybridlm.state import LayerState


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """One diagonal system a channel.

    d_state: states N of a channel, even, as they come in conjugate couples.
    init: eigenvalues to begin with: lin, inv, real or legs.
    discretization: zoh (the input is held over a step) or bilinear.
    dt_min, dt_max: the step dt of each channel is drawn log-uniformly between them; 1 / dt is its memory in tokens.
    time_scale: what every dt is multiplied with: 2 where a signal comes at half the rate of training.
    """

    d_state: int = 64
    init: str = "lin"
    discretization: str = "zoh"
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    time_scale: float = 1.0

    def resolve(self, d_model: int) -> "S4DConfig":
        """Every field checked."""
        dt_min, dt_max = interval("dt_min", self.dt_min, "dt_max", self.dt_max, 1e-6, 10)
        return replace(
            self,
            d_state=paired("d_state", self.d_state),
            init=choice("init", self.init, INITS),
            discretization=choice("discretization", self.discretization, RULES),
            dt_min=dt_min,
            dt_max=dt_max,
            time_scale=real("time_scale", self.time_scale, 1e-6, 1e6),
        )


@dataclass
class S4DState(LayerState):
    """State of every channel: one of each conjugate couple, as (re, im). ssm: (b, d, N/2, 2), float32 or float64."""

    kind = "s4d"
    ssm: Tensor


class S4D(Mixer):
    """Diagonal state space (S4D): linear in time, the same system at every token."""

    Config = S4DConfig
    State = S4DState
    letter = "s"
    recurrent = True
    param_groups: ClassVar = {f"ssm.{name}": group for name, group in GROUPS.items()}
    residual_projections = ("output_linear",)
    precise = ("ssm.log_A_real", "ssm.A_imag", "ssm.log_dt")
    initial_fields = ("init", "dt_min", "dt_max")

    def __init__(self, config: S4DConfig, d_model: int, *, eps: float = 1e-5):
        super().__init__(config, d_model)
        self.ssm = DiagonalSSM(d_model, self.config.d_state)
        self.output_linear = Linear(d_model, 2 * d_model)
        self.reset_parameters()

    def reset_parameters(self, streams: Streams | None = None) -> None:
        """The systems as configured, the projection as every linear layer."""
        streams, c = streams or Streams.drawn(), self.config
        self.ssm.reset_parameters(c.init, c.dt_min, c.dt_max, streams.at("ssm"))
        init.linear(self.output_linear, streams, "output_linear")

    def init_state(self, batch: int, max_length: int, *, device=None, dtype=None) -> S4DState:
        dtype = state_dtype(dtype or torch.get_default_dtype())
        return S4DState(torch.zeros(batch, self.d_model, self.config.d_state // 2, 2, device=device, dtype=dtype))

    def forward(
        self, x: Float[Tensor, "b t d"], state: S4DState | None = None, ctx: Context | None = None
    ) -> tuple[Float[Tensor, "b t e"], S4DState | None]:
        x, ctx = self.enter(x, state, ctx)
        y, ssm = self.ssm(
            x,
            None if state is None else state.ssm,
            ctx,
            rule=self.config.discretization,
            time_scale=self.config.time_scale,
        )
        y = F.glu(self.output_linear(F.gelu(y)), dim=-1)
        return y, None if state is None else state.advance(ssm=ssm)

    @classmethod
    def cost(cls, config: S4DConfig, d_model: int) -> Cost:
        """FLOPs as `diagonal_flops` counts them; computing the kernel is paid once for all rows of a batch."""
        n = config.d_state

        def forward(tokens: int, past: int) -> Flops:
            return linear(tokens, d_model, 2 * d_model) + Flops(*diagonal_flops(d_model, n, tokens, past > 0))

        return Cost(
            2 * d_model * (d_model + 1) + d_model * (3 * n + 2),
            forward,
            lambda max_length, itemsize: StateBytes(ssm=d_model * n * max(4, itemsize)),
        )
