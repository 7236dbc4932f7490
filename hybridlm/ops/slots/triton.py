"""Both caches written by one kernel, where PyTorch takes several for each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

BLOCK = 1024


def write_slots(
    caches: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], slots: Tensor, keep: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    write_pair(*caches, *(v.flatten(0, 1).flatten(1) for v in new), slots, keep)
    return caches


@torch.library.custom_op("hybridlm::write_pair", mutates_args=("first", "second"))
def write_pair(
    first: Tensor, second: Tensor, new_first: Tensor, new_second: Tensor, slots: Tensor, keep: Tensor | None
) -> None:
    """first, second (b, s, ...); new (b t, columns); slots, keep (b, t)."""
    keep_strides = (0, 0) if keep is None else keep.stride()
    (m, wide), narrow, (s, t) = new_first.shape, new_second.shape[1], (first.shape[1], slots.shape[1])
    with torch.cuda.device_of(first):
        _write[(m, triton.cdiv(max(wide, narrow), BLOCK), 2)](  # tokens first: the other axes end at 65,535
            first, second, new_first, new_second, slots, keep, s, t, wide, narrow,
            *new_first.stride(), *new_second.stride(), *slots.stride(), *keep_strides,
            BLOCK=BLOCK, num_warps=4, **queued(first),
        )  # fmt: skip


@write_pair.register_fake
def _(first, second, new_first, new_second, slots, keep):
    return None


@triton.jit
def _write(
    first, second, new_first, new_second, slots, keep, s, t, wide, narrow,
    first_row, first_column, second_row, second_column, slots_b, slots_t, keep_b, keep_t,
    BLOCK: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = i >= 0
    if keep is not None:
        wanted = wanted & (tl.load(keep + token // t * keep_b + token % t * keep_t) != 0)
    place = token // t * s + tl.load(slots + token // t * slots_b + token % t * slots_t)
    if tl.program_id(2) == 0:
        _copy(new_first + token * first_row + i * first_column, first + place * wide + i, wanted & (i < wide))
    else:
        _copy(new_second + token * second_row + i * second_column, second + place * narrow + i, wanted & (i < narrow))


@triton.jit
def _copy(source, target, mask):
    tl.store(target, tl.load(source, mask=mask).to(target.dtype.element_ty), mask=mask)
