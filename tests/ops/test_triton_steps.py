"""The kernels of decoding that write over their state, in Triton's interpreter, against float64."""

from functools import partial

import pytest
import torch

from hybridlm.ops.backend import use
from hybridlm.ops.causal_conv import causal_conv1d
from hybridlm.ops.selective_scan import selective_scan
from hybridlm.ops.ssd import ssd
from tests.ops.common import error

LIMITS = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the interpreter cuts bf16 off


def ssd_case(rng, dtype, b=2, h=4, p=10, g=2, n=20, skip=True):
    draw = partial(torch.randn, generator=rng)
    x = draw(b, 1, h * p + 3)[..., 3:].reshape(b, 1, h, p)
    args = [x.to(dtype), draw(b, 1, h).abs(), -draw(h).abs(), *(draw(b, 1, g, n).to(dtype) for _ in "BC")]
    return ssd, [*args, draw(h).to(dtype) if skip else None], draw(b, h, p, n)


def scan_case(rng, dtype, b=2, d=70, n=5, skip=True):
    draw = partial(torch.randn, generator=rng)
    args = [draw(b, 1, d).to(dtype), draw(b, 1, d).abs(), -draw(d, n).abs(), *(draw(b, 1, n).to(dtype) for _ in "BC")]
    return selective_scan, [*args, draw(d).to(dtype) if skip else None], draw(b, d, n)


def conv_case(rng, dtype, b=3, c=150, k=4, bias=True, activation="silu"):
    draw = partial(torch.randn, generator=rng)
    x = draw(b, 1, c + 40)[..., 8 : 8 + c].to(dtype)  # a slice of a projection
    args = [x, draw(c, 1, k).to(dtype), draw(c).to(dtype) if bias else None]
    return partial(causal_conv1d, activation=activation), args, draw(b, c, k - 1).to(dtype)


CASES = {
    "ssd": ssd_case,
    "ssd, one group, no skip": partial(ssd_case, g=1, n=16, skip=False),
    "scan": scan_case,
    "scan, no skip": partial(scan_case, n=16, skip=False),
    "conv": conv_case,
    "conv of 2 taps": partial(conv_case, k=2, bias=False, activation=None),
    "conv of 7 taps": partial(conv_case, k=7),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", CASES)
def test_three_tokens(case, dtype, rng):
    op, args, state = CASES[case](rng, dtype)
    ours, true = state.clone(), state.double()
    for _ in range(3):
        y, after = op(*args, state=ours, in_place=True, backend="triton")
        want, true = op(*(v if v is None else v.double() for v in args), state=true, backend="reference")
        assert after is ours
        assert y.dtype == args[0].dtype
        assert y.shape == args[0].shape
        assert error(y, want) < LIMITS[dtype]
        assert error(ours, true) < (LIMITS[torch.float32] if ours.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("case", ["ssd", "scan", "conv"])
def test_a_state_is_overwritten_only_where_it_may_be(case, rng):
    op, args, state = CASES[case](rng, torch.float32)

    def left_alone(state, **more):
        before = state.clone()
        with use("triton"):
            _, after = op(*args, state=state, **more)
        return after is not state and torch.equal(state, before)

    assert not left_alone(state.clone(), in_place=True)
    assert left_alone(state)
    assert left_alone(state.clone().requires_grad_(), in_place=True)


@pytest.mark.parametrize("case", CASES)
def test_what_the_kernel_cannot_take_is_right_all_the_same(case, rng):
    op, args, state = CASES[case](rng, torch.float32)
    new_document = {"document": torch.ones(len(state), 1, dtype=torch.int64)}
    strided = state.transpose(0, 1).contiguous().transpose(0, 1)
    for given, more in ((state, new_document), (state.double(), {}), (strided, {})):
        want = op(*args, state=given.clone(), backend="reference", **more)
        with use("triton"):
            got = op(*args, state=given.clone(), in_place=True, **more)
        for ours, theirs in zip(got, want, strict=True):
            assert error(ours, theirs.double()) < 5e-7


def test_a_pad_leaves_the_convolutions_state_as_it_is(rng):
    op, args, state = conv_case(rng, torch.float32)
    ours, lengths = state.clone(), torch.tensor([1, 0, 1])
    y, _ = op(*args, state=ours, lengths=lengths, in_place=True, backend="triton")
    want, after = op(*args, state=state, lengths=lengths, backend="reference")
    assert torch.equal(ours, after)
    assert torch.equal(ours[1], state[1])
    assert error(y[lengths > 0], want[lengths > 0].double()) < 5e-7


def test_more_than_one_token_is_not_for_the_kernel(rng):
    op, args, state = conv_case(rng, torch.float32)
    ours = state.clone()
    with use("triton"):
        _, after = op(args[0].repeat(1, 2, 1), *args[1:], state=ours, in_place=True)
    assert after is not ours
    assert torch.equal(ours, state)


def test_opcheck(rng):
    from hybridlm.ops.causal_conv.triton_step import conv_step
    from hybridlm.ops.selective_scan.triton_step import scan_step
    from hybridlm.ops.ssd.triton_step import ssd_step

    utils = ("test_schema", "test_faketensor")
    for case, step in ((ssd_case, ssd_step), (scan_case, scan_step)):
        _, (x, dt, A, B, C, D), state = case(rng, torch.float32)
        torch.library.opcheck(step, (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state), test_utils=utils)
    _, (x, weight, bias), state = conv_case(rng, torch.float32)
    torch.library.opcheck(conv_step, (x[:, 0], weight[:, 0], bias, state, None, True), test_utils=utils)
