"""One query a row against a cache of keys and values, each byte of which is read once. Dao et al. 2023, Flash-Decoding.

What a row has is divided evenly among SPLITS programs for each of its key heads; each gives a sum of values, weighted
relative to the greatest score that it met, and a second kernel brings the sums together. How many keys there are is
known on the device alone, so the number of programs follows from the cache's size, and a CUDA graph stays right.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

PROGRAMS = 256, 512  # to keep a GPU's memory busy: of single heads, of groups
FEWEST = 8192  # entries of keys for which a program is worth its while: 128 keys of 64
LOG2_E = 1.4426950408889634


def cached_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, extent: int, scale: float | None) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return attend_step(q[:, 0], k, v, positions[:, 0], scale).unsqueeze(1)


@torch.library.custom_op("hybridlm::attend_step", mutates_args=())
def attend_step(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float) -> Tensor:
    """q (b, h, p), k, v (b, s, hk, p), positions (b) -> (b, h, pv)."""
    y = q.new_empty(*q.shape[:2], v.shape[-1])
    with torch.cuda.device_of(q):
        launch(q, k, v, positions, scale, y)
    return y


@attend_step.register_fake
def _(q, k, v, positions, scale):
    return q.new_empty(*q.shape[:2], v.shape[-1])


def splits_of(b: int, s: int, hk: int, group: int, width: int) -> int:
    """How many programs share the keys of a row and a head, a power of 2."""
    wanted = PROGRAMS[0] // (b * hk) if group == 1 else max(2, PROGRAMS[1] // (b * hk))
    most = max(1, min(wanted, s * width // FEWEST, 128))
    return 1 << most.bit_length() - 1


def warps_of(entries: int) -> int:
    """Warps of a program that sums up so many numbers at once: as few as hold them in their registers."""
    return 2 if entries <= 4096 else 8 if entries <= 8192 else 16


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    scale: float,
    y: Tensor,
    splits: int | None = None,
    keys: int | None = None,
    warps: int | None = None,
    stages: int | None = None,
) -> None:
    (b, h, p), (s, hk), pv = q.shape, k.shape[1:3], v.shape[-1]
    width, group = triton.next_power_of_2(max(p, pv, 16)), h // hk
    splits = splits or splits_of(b, s, hk, group, width)
    sums = q.new_empty(b, h, splits, pv, dtype=torch.float32) if splits > 1 else y
    about = q.new_empty(2, b, h, splits, dtype=torch.float32)
    most = max(16, triton.next_power_of_2(group))
    warps, stages = warps or (4 if group == 1 else warps_of(most * width)), stages or (3 if group == 1 else 2)
    heads = {} if group == 1 else {"GROUP": group, "HEADS": most}
    (_attend_one if group == 1 else _attend_group)[(splits, hk, b)](
        q, k, v, positions, sums, about, scale * LOG2_E, s, p, pv,
        *q.stride(), *k.stride(), *v.stride(), positions.stride(0), **heads,
        KEYS=keys or max(16, min(64, 4096 // width)), WIDTH=width, STAGES=stages, num_warps=warps, **queued(q),
    )  # fmt: skip
    if splits > 1:
        _merge[(h, b)](sums, about, y, b * h * splits, pv, SPLITS=splits, WIDTH=width, num_warps=4, **queued(q))


@triton.jit
def _share(positions, row, positions_b, s, KEYS: tl.constexpr):
    """The slots that a program reads: from, and up to."""
    length = tl.minimum(tl.load(positions + row * positions_b) + 1, s).to(tl.int32)
    span = tl.cdiv(tl.cdiv(length, tl.num_programs(0)), KEYS) * KEYS
    first = tl.program_id(0) * span
    return first, tl.minimum(first + span, length)


@triton.jit
def _attend_one(
    q, k, v, positions, sums, about, scale, s, p, pv,
    q_b, q_h, q_p, k_b, k_s, k_h, k_p, v_b, v_s, v_h, v_p, positions_b,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    """A key head of one query. Each of KEYS lanes keeps a softmax of its own; they meet at the end."""
    queue(QUEUED)
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    first, last = _share(positions, row, positions_b, s, KEYS)
    c = tl.arange(0, WIDTH)[None, :]
    query = tl.load(q + row * q_b + head * q_h + c * q_p, mask=c < p, other=0.0).to(tl.float32) * scale
    top = tl.full([KEYS, 1], float("-inf"), tl.float32)
    weight = tl.zeros([KEYS, 1], tl.float32)
    total = tl.zeros([KEYS, WIDTH], tl.float32)
    for start in tl.range(first, last, KEYS, num_stages=STAGES):
        slot = (start + tl.arange(0, KEYS)[:, None]).to(tl.int64)
        key = tl.load(k + row * k_b + head * k_h + slot * k_s + c * k_p, mask=(slot < last) & (c < p), other=0.0)
        value = tl.load(v + row * v_b + head * v_h + slot * v_s + c * v_p, mask=(slot < last) & (c < pv), other=0.0)
        score = tl.where(slot < last, tl.sum(key.to(tl.float32) * query, axis=1, keep_dims=True), float("-inf"))
        highest = tl.maximum(top, score)
        base = tl.where(highest == float("-inf"), 0.0, highest)  # a lane that has met no key yet
        fade, share = tl.exp2(top - base), tl.exp2(score - base)
        weight, top = weight * fade + share, highest
        total = total * fade + share * value.to(tl.float32)
    best = tl.max(top, axis=0, keep_dims=True)
    fade = tl.exp2(top - tl.where(best == float("-inf"), 0.0, best))
    total, weight = tl.sum(total * fade, axis=0, keep_dims=True), tl.sum(weight * fade, axis=0, keep_dims=True)
    only = tl.arange(0, 1)[:, None]
    heads = tl.num_programs(1)
    _store(sums, about, total, best, weight, row * heads + head + only, only == 0, heads, pv, c)


@triton.jit
def _attend_group(
    q, k, v, positions, sums, about, scale, s, p, pv,
    q_b, q_h, q_p, k_b, k_s, k_h, k_p, v_b, v_s, v_h, v_p, positions_b,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
    QUEUED: tl.constexpr,
):  # fmt: skip
    """A key head of GROUP queries, which are the rows of a matrix product."""
    queue(QUEUED)
    row, owner = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    first, last = _share(positions, row, positions_b, s, KEYS)
    mine = tl.arange(0, HEADS)[:, None] < GROUP
    head = owner * GROUP + tl.arange(0, HEADS)[:, None]
    c, down = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH)[:, None]
    k += row * k_b + owner * k_h
    v += row * v_b + owner * v_h
    query = tl.load(q + row * q_b + head * q_h + c * q_p, mask=mine & (c < p), other=0.0)
    top = tl.full([HEADS, 1], float("-inf"), tl.float32)
    weight = tl.zeros([HEADS, 1], tl.float32)
    total = tl.zeros([HEADS, WIDTH], tl.float32)
    for start in tl.range(first, last, KEYS, num_stages=STAGES):
        across = (start + tl.arange(0, KEYS)[None, :]).to(tl.int64)
        slot = (start + tl.arange(0, KEYS)[:, None]).to(tl.int64)
        key = tl.load(k + across * k_s + down * k_p, mask=(across < last) & (down < p), other=0.0)
        value = tl.load(v + slot * v_s + c * v_p, mask=(slot < last) & (c < pv), other=0.0)
        score = tl.dot(query, key.to(query.dtype), input_precision="ieee") * scale
        score = tl.where(across < last, score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, axis=1, keep_dims=True))  # there is a key in every round
        fade, share = tl.exp2(top - highest), tl.exp2(score - highest)
        weight, top = weight * fade + tl.sum(share, axis=1, keep_dims=True), highest
        total = tl.dot(share.to(query.dtype), value.to(query.dtype), total * fade, input_precision="ieee")
    heads = tl.num_programs(1) * GROUP
    _store(sums, about, total, top, weight, row * heads + head, mine, heads, pv, c)


@triton.jit
def _store(sums, about, total, top, weight, head, mine, heads, pv, c):
    """What one of several programs found, for `_merge`; what the only one found, finished."""
    splits = tl.num_programs(0)
    place = head * splits + tl.program_id(0)
    if splits == 1:
        tl.store(sums + place * pv + c, (total / weight).to(sums.dtype.element_ty), mask=mine & (c < pv))
    else:
        tl.store(sums + place * pv + c, total.to(sums.dtype.element_ty), mask=mine & (c < pv))
        tl.store(about + place, top, mask=mine)
        tl.store(about + tl.num_programs(2).to(tl.int64) * heads * splits + place, weight, mask=mine)


@triton.jit
def _merge(sums, about, y, apart, pv, SPLITS: tl.constexpr, WIDTH: tl.constexpr, QUEUED: tl.constexpr):
    queue(QUEUED)
    head = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    place = head * SPLITS + tl.arange(0, SPLITS)[:, None]
    c = tl.arange(0, WIDTH)[None, :]
    top = tl.load(about + place)
    fade = tl.exp2(top - tl.max(top, axis=0, keep_dims=True))
    weight = tl.sum(tl.load(about + apart + place) * fade, axis=0, keep_dims=True)
    total = tl.sum(tl.load(sums + place * pv + c, mask=c < pv, other=0.0) * fade, axis=0, keep_dims=True)
    tl.store(y + head * pv + c, (total / weight).to(y.dtype.element_ty), mask=c < pv)
