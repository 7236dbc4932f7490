"""The kernel of decoding with a cache of keys and values, in Triton's interpreter, against float64."""

import pytest
import torch

from hybridlm.ops.attention import cached_attention
from hybridlm.ops.backend import trace, use
from tests.ops.common import error

LIMITS = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the interpreter cuts bf16 off
HEADS = [(2, 2), (4, 2), (3, 1)]


def drawn(rng, dtype, b=3, s=90, h=2, hk=2, p=16, pv=16):
    """Positions at the first slot, in the middle, and round a ring; what a row has not written is poison."""
    q = torch.randn(b, 1, h, p, generator=rng).to(dtype)
    positions = torch.tensor([[0], [40], [s + 7]])[:b]
    k, v = (torch.randn(b, s, hk, width, generator=rng).to(dtype) for width in (p, pv))
    unseen = torch.arange(s) > positions
    return (
        q,
        k.masked_fill(unseen[..., None, None], torch.nan),
        v.masked_fill(unseen[..., None, None], torch.nan),
        positions,
    )


def true(q, k, v, positions, **more):
    q, k, v = q.double(), k.double().nan_to_num(), v.double().nan_to_num()
    return cached_attention(q, k, v, positions, extent=int(positions.max()) + 1, backend="reference", **more)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("h", "hk"), HEADS)
def test_heads_splits_and_poison(h, hk, dtype, splits, rng, monkeypatch):
    from hybridlm.ops.attention import triton_decode

    if h != hk and dtype == torch.bfloat16:
        dtype = torch.float16  # the interpreter multiplies bf16 matrices as if they were integers
    monkeypatch.setattr(triton_decode, "splits_of", lambda *sizes: splits)
    args = drawn(rng, dtype, h=h, hk=hk)
    y = cached_attention(*args, extent=1000, backend="triton")
    assert y.dtype == dtype
    assert error(y, true(*args)) < LIMITS[dtype]


def test_scale_uneven_widths_and_strides(rng):
    q, k, v, positions = drawn(rng, torch.float32, p=12, pv=20)
    for swap in (False, True):
        if swap:
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        y = cached_attention(q, k, v, positions, extent=200, scale=0.3, backend="triton")
        assert y.shape == (3, 1, 2, 20)
        assert error(y, true(q, k, v, positions, scale=0.3)) < 5e-7


def test_many_heads_of_one_key_fill_more_warps(rng):
    """As those of latent attention do, whose keys are wider than its values. Two warps would spill: read off ptxas."""
    from hybridlm.ops.attention.triton_decode import warps_of

    assert [warps_of(heads * 256) for heads in (16, 32, 64, 128)] == [2, 8, 16, 16]
    args = drawn(rng, torch.float32, h=40, hk=1, p=24, pv=16)
    assert error(cached_attention(*args, extent=1000, backend="triton"), true(*args)) < 5e-7


def test_the_number_of_programs_follows_from_shapes_alone():
    from hybridlm.ops.attention.triton_decode import splits_of

    assert splits_of(64, 2048, 16, 1, 64) < splits_of(1, 2048, 16, 1, 64)
    assert splits_of(1, 10, 1, 1, 64) == splits_of(1, 10, 1, 8, 64) == 1
    found = {splits_of(b, s, 8, r, 64) for b in (1, 7, 100) for s in (1, 999, 10**6) for r in (1, 4)}
    assert found <= {1, 2, 4, 8, 16, 32, 64, 128}


def test_what_the_kernel_does_not_take(rng):
    q, k, v, positions = drawn(rng, torch.float32, b=1)

    def taken(q, k):
        with use("triton"), trace() as seen:
            cached_attention(q, k, v, positions.expand(-1, q.shape[1]), extent=160)
        return next(one.backend for one in seen if one.op == "cached_attention")

    assert taken(q, k) == "triton"
    assert taken(q.expand(-1, 2, -1, -1), k) != "triton"
    assert taken(q, k.half()) != "triton"
    assert taken(q.clone().requires_grad_(), k) != "triton"


def test_opcheck(rng):
    from hybridlm.ops.attention.triton_decode import attend_step

    q, k, v, positions = drawn(rng, torch.float32)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        attend_step, (q[:, 0], k.nan_to_num(), v.nan_to_num(), positions[:, 0], 0.25), test_utils=utils
    )
