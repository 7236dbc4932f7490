"""The language-model loss without ever holding all logits."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.cross_entropy import reference
from hybridlm.ops.cross_entropy.reference import IGNORED

__all__ = ["IGNORED", "linear_cross_entropy"]


def linear_cross_entropy(
    x: Float[Tensor, "n d"],
    head: Callable[[Tensor], Tensor],
    targets: Int[Tensor, "n"],
    chunk: int = 4096,
    backend: str = "auto",
) -> Float[Tensor, ""]:
    """Mean of -log softmax(head(x))[target] over the targets that are not -100, in nats; 0 if there are none.

    head: (m, d) -> (m, v), the output layer itself, so that whatever hangs on it takes part. Computed in at least
    float32 and `chunk` tokens at a time, forward and backward: memory holds chunk * v logits and not n * v.
    """
    run = resolve("linear_cross_entropy", backend, {"reference": reference.linear_cross_entropy})
    return run(x, head, targets, chunk)
