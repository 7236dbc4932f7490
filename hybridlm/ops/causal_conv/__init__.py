"""The short causal convolution that stands before a selective scan."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked, triton_lacks
from hybridlm.ops.causal_conv import reference, vendor
from hybridlm.ops.decoding import step_lacks


def causal_conv1d(
    x: Float[Tensor, "b t c"],
    weight: Float[Tensor, "c 1 k"],
    bias: Float[Tensor, "c"] | None,
    *,
    state: Float[Tensor, "b c k-1"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    activation: Literal["silu"] | None = None,
    in_place: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c k-1"]]:
    """y_t = activation(bias + sum_j weight[:, 0, j] x_{t-k+1+j}), channel by channel: (y, the last k - 1 inputs).

    Gu and Dao 2023, figure 3 ("Conv"); weight as nn.Conv1d(c, c, k, groups=c) has it: the last tap is the present.
    state: the k - 1 inputs before the first token, the latest last; zeros where there were none, or if None.
    lengths: valid tokens of each row, at its start; what follows is not read, and 0 leaves the row's state as it is.
    document: non-decreasing along t; 0 continues the state, and no tap reaches over a change of number. The state
    that is returned holds inputs of the row's last document only.
    in_place: the memory of `state` may be written over, and is then what is returned; for calls without gradients.
    Computed in at least float32; y has the dtype of x, the state that of `state`. t >= 1, k >= 1.
    """
    step = step_lacks(x, state, weight, bias, document=document, in_place=in_place) is None
    theirs = Offer(vendor.causal_conv1d, lambda: vendor.lacks(x, weight, state))
    ours = _step(x) if step else _walk(x, weight)
    offers = {"triton": ours, "vendor": theirs, "reference": reference.causal_conv1d}
    return resolve("causal_conv1d", backend, offers)(x, weight, bias, state, lengths, document, activation)


def _step(x: Tensor) -> Offer:
    """The kernel of decoding, for a call that it can take."""
    return Offer(kernels("hybridlm.ops.causal_conv.triton_step").causal_conv1d, asked=triton_asked(x))


def _walk(x: Tensor, weight: Tensor) -> Offer:
    """The kernels for many tokens."""
    walk = kernels("hybridlm.ops.causal_conv.triton")
    if walk is None:
        return Offer(None, triton_lacks(x))
    return Offer(walk.causal_conv1d, walk.lacks(x, weight), triton_asked(x))
