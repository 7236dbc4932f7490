"""The norms that stand before a mixer, before an MLP, and at the end of the stack."""

import torch
from torch import Tensor, nn

from hybridlm.errors import SpecError, did_you_mean
from hybridlm.ops.norm import layer_norm, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight. Zhang and Sennrich 2019."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self, streams=None) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), in the weight's dtype."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias. Ba et al. 2016."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def reset_parameters(self, streams=None) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), in the weight's dtype."""
        return layer_norm(x, self.weight, self.bias, self.eps)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def norm_class(name: str) -> type[RMSNorm] | type[LayerNorm]:
    """The norm of that name; SpecError otherwise."""
    if name not in NORMS:
        raise SpecError(f"norm: unknown norm {name!r}; one of {', '.join(NORMS)}.{did_you_mean(name, NORMS)}")
    return NORMS[name]


def norm_parameters(name: str, width: int) -> int:
    """Entries of its parameters."""
    return width * (2 if norm_class(name) is LayerNorm else 1)
