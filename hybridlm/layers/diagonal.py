"""What S4D and H3 have in common: diagonal state spaces, their parameters and first values."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.init import Streams
from hybridlm.ops.diagonal_ssm import Rule, diagonal_ssm
from hybridlm.ops.hippo import diagonal, dplr

INITS = ("lin", "inv", "real", "legs")
"""Eigenvalues to begin with: lin -1/2 + i pi k, inv -1/2 + i N/pi (N/(2k+1) - 1), real -(k+1), legs HiPPO-LegS's."""

GROUPS = {name: {"weight_decay": 0.0, "lr_max": 1e-3} for name in ("log_A_real", "A_imag", "B", "log_dt")}
GROUPS |= {"D": {"weight_decay": 0.0}}
"""`param_groups` of a system: what shapes the memory is learned slowly and never decayed."""


class DiagonalSystems(nn.Module):
    """d diagonal systems of N states. One of each conjugate couple is kept, as (re, im): n = N/2.

    Real systems are couples with imaginary part 0, as the code of S4D has them: N/2 decays, which may learn to turn.
    """

    def __init__(self, channels: int, d_state: int):
        super().__init__()
        couples = d_state // 2
        self.log_A_real = nn.Parameter(torch.empty(channels, couples))
        self.A_imag = nn.Parameter(torch.empty(channels, couples))
        self.B = nn.Parameter(torch.empty(channels, couples, 2))
        self.C = nn.Parameter(torch.empty(channels, couples, 2))
        self.D = nn.Parameter(torch.empty(channels))
        self.log_dt = nn.Parameter(torch.empty(channels))

    def reset_parameters(self, kind: str, dt_min: float, dt_max: float, streams: Streams) -> None:
        """The same A, B in every system; C, D and dt of its own."""
        states = 2 * self.A_imag.shape[1]
        Lambda, B = diagonal(kind, states), torch.tensor([1.0, 0.0])
        if kind == "legs":
            B = dplr("legs", states)[2] / 2  # half of LegS's B gives LegS's kernel as N grows: S4D, theorem 3
        init.fill(self.log_A_real, torch.log(-Lambda[..., 0]).expand_as(self.log_A_real))  # Re(Lambda) = -exp(.) < 0
        init.fill(self.A_imag, Lambda[..., 1].expand_as(self.A_imag))
        init.fill(self.B, B.expand_as(self.B))
        init.normal(self.C, 0.5**0.5, streams("C"))  # complex N(0, 1): half the variance in each part
        init.normal(self.D, 1.0, streams("D"))
        init.uniform(self.log_dt, math.log(dt_min), math.log(dt_max), streams("log_dt"))

    def systems(self, time_scale: float = 1.0) -> dict[str, Tensor]:
        """Lambda, B, C, D and dt as the ops take them; frequencies and steps in float64."""
        Lambda = torch.stack([-self.log_A_real.double().exp(), self.A_imag.double()], dim=-1)
        return {"Lambda": Lambda, "B": self.B, "C": self.C, "D": self.D, "dt": time_scale * self.log_dt.double().exp()}


class DiagonalSSM(DiagonalSystems):
    """A system a channel."""

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        state: Float[Tensor, "b d n 2"] | None,
        ctx: Context,
        *,
        rule: Rule = "zoh",
        time_scale: float = 1.0,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n 2"] | None]:
        """x -> y, and the state after each row's last valid token (None without one)."""
        about = {"state": state, "lengths": ctx.lengths, "document": ctx.document}
        return diagonal_ssm(x, **self.systems(time_scale), rule=rule, **about)
