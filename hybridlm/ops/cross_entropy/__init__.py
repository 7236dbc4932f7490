"""The language-model loss without ever holding all logits."""

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.cross_entropy import reference


def linear_cross_entropy(
    x: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, "n"],
    chunk: int = 4096,
    backend: str = "auto",
) -> Float[Tensor, ""]:
    """Mean of -log softmax(x W^T)[target] over the targets that are not -100, in nats; 0 if there are none.

    Computed in at least float32 and `chunk` tokens at a time, forward and backward, so that memory holds
    chunk * v logits and not n * v.
    """
    return resolve("linear_cross_entropy", backend, {"reference": reference.linear_cross_entropy})(
        x, weight, targets, chunk
    )
