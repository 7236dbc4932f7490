"""The short causal convolution inside a mixer: it mixes a token with the k - 1 before it, channel by channel."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybridlm.context import Context
from hybridlm.layers import init
from hybridlm.layers.cost import Cost, Flops, StateBytes
from hybridlm.layers.init import Streams
from hybridlm.ops.causal_conv import causal_conv1d


class ShortConv(nn.Module):
    """Depthwise causal convolution of width k, then an activation. Weight (c, 1, k) as nn.Conv1d has it.

    It remembers the last k - 1 inputs of a document, (b, c, k - 1); the mixer keeps them in its state.
    """

    def __init__(self, channels: int, kernel: int, *, bias: bool = True, activation: Literal["silu"] | None = "silu"):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset_parameters(self, streams: Streams) -> None:
        """U(-k^-1/2, k^-1/2), PyTorch's own default for a convolution with one channel a group."""
        bound = self.weight.shape[-1] ** -0.5
        init.uniform(self.weight, -bound, bound, streams("weight"))
        if self.bias is not None:
            init.uniform(self.bias, -bound, bound, streams("bias"))

    def forward(
        self, x: Float[Tensor, "b t c"], state: Float[Tensor, "b c k"] | None, ctx: Context, in_place: bool = False
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c k"]]:
        """x -> y of the same shape, and the inputs to remember. state: those remembered so far; None: none.

        in_place: their memory may be written over.
        """
        return causal_conv1d(
            x,
            self.weight,
            self.bias,
            state=state,
            lengths=ctx.lengths,
            document=ctx.document,
            activation=self.activation,
            in_place=in_place,
        )


def short_conv_cost(channels: int, kernel: int, *, bias: bool = True) -> Cost:
    """Scan FLOPs: k products and k - 1 sums, one more with a bias, a channel and token."""
    return Cost(
        channels * (kernel + bias),
        lambda tokens, past: Flops(scan=tokens * channels * (2 * kernel - 1 + bias)),
        lambda max_length, itemsize: StateBytes(ssm=channels * (kernel - 1) * itemsize),
    )
