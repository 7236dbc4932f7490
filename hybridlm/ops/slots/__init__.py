"""Writing what a layer remembers of tokens, its keys and values say, to slots of its caches."""

from jaxtyping import Bool, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked
from hybridlm.ops.decoding import kernel_lacks
from hybridlm.ops.slots import reference

Pair = tuple[Tensor, Tensor]


def write_slots(
    caches: Pair,
    new: Pair,
    slots: Int[Tensor, "b t"],
    keep: Bool[Tensor, "b t"] | None = None,
    *,
    in_place: bool = False,
    backend: str = "auto",
) -> Pair:
    """Two caches (b, s, ...) with new (b, t, ...) of each at slots where keep; no slot of a row twice.

    in_place: the caches themselves are written, and returned; for calls without gradients. keep: None is everywhere.
    """
    k = kernels("hybridlm.ops.slots.triton")
    offers = {
        "triton": Offer(k and k.write_slots, _lacks(caches, new, in_place), triton_asked(slots)),
        "reference": reference.write_slots,
    }
    return resolve("write_slots", backend, offers)(caches, new, slots, keep, in_place)


def _lacks(caches: Pair, new: Pair, in_place: bool) -> str | None:
    """Why our kernel cannot take the call."""
    if not in_place:
        return "the kernel writes in place"
    if not all(v.is_contiguous() for v in caches):
        return "the kernel needs caches in one piece"
    return kernel_lacks(*caches, *new)
