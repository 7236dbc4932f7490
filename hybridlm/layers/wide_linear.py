"""A linear layer for what must not be rounded: step sizes, decays, learning rates of a state."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.ops.linear import linear


class WideLinear(nn.Linear):
    """A linear layer in at least float32, whatever its weights and autocast say: a rounded dt is a wrong memory."""

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, self.weight, self.bias, wide=True)
