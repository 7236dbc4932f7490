"""The language-model loss without ever holding all logits."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.ops.backend import Offer, forward_mode, resolve, triton_asked, triton_lacks
from hybridlm.ops.cross_entropy import ahead, reference
from hybridlm.ops.cross_entropy.reference import IGNORED

__all__ = ["IGNORED", "linear_cross_entropy"]


def linear_cross_entropy(
    x: Float[Tensor, "n d"],
    head: Callable[[Tensor], Tensor] | Float[Tensor, "v d"],
    targets: Int[Tensor, "n"],
    chunk: int = 4096,
    backend: str = "auto",
) -> Float[Tensor, ""]:
    """Mean of -log softmax(head(x))[target] over the targets that are not -100, in nats; 0 if there are none.

    head: (m, d) -> (m, v), the output layer itself, so that whatever hangs on it takes part; or, where nothing does,
    its weight alone. Computed in at least float32 and `chunk` tokens at a time, forward and backward: memory holds
    chunk * v logits and not n * v.
    A layer's logits are computed again in the backward pass. With a weight the gradients are computed in the forward
    pass, chunk by chunk while the logits are there (Hsu et al. 2024, Liger, arXiv:2410.10989, section 3.2): one matrix
    product of four less. They have no gradients of their own: UnsupportedError in a backward pass with create_graph.
    reference: PyTorch; triton: softmax and its gradient in one kernel, in the memory of the logits; for a weight only.
    """
    offers = {
        "triton": Offer(_by_triton, _lacks(x, head), triton_asked(x)),
        "reference": reference.linear_cross_entropy if callable(head) else _by_torch,
    }
    run = resolve("linear_cross_entropy", backend, offers)
    return run(x, head, targets, chunk) / (targets != IGNORED).sum().clamp(min=1)


def _lacks(x: Tensor, head: Callable | Tensor) -> str | None:
    if callable(head):
        return "the output layer is more than a weight, or has hooks"
    if x.dtype == torch.float64:
        return "it computes in float32"
    return triton_lacks(x)


def _by_torch(x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    by_func = not torch.compiler.is_compiling() and (is_wrapped(x) or is_wrapped(weight))
    if by_func or forward_mode():
        return reference.linear_cross_entropy(x, lambda part: part @ weight.mT, targets, chunk)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would be waiting for a number
        x, targets = _asked(x, targets)
    return ahead.linear_cross_entropy(x, weight, targets, chunk, fused=False)


def _asked(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that something is asked of; of a task with few answers they are few."""
    counts = targets != IGNORED
    return (x, targets) if counts.all() else (x[counts], targets[counts])


def _by_triton(x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    return ahead.linear_cross_entropy(x, weight, targets, chunk, fused=True)
