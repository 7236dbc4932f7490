"""A linear layer for what must not be rounded: step sizes, decays, learning rates of a state."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.layers.mixer import state_dtype


class WideLinear(nn.Linear):
    """A linear layer in at least float32, whatever its weights and autocast say: a rounded dt is a wrong memory."""

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        wide = state_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))
