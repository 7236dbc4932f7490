"""The kernels that save launches (norms, rotary, steps and rates, slots), in Triton's interpreter, against float64."""

import pytest
import torch

from hybridlm.ops.backend import trace, use
from hybridlm.ops.norm import gated_rms_norm, layer_norm, rms_norm
from hybridlm.ops.rotary import rotary
from hybridlm.ops.slots import write_slots
from hybridlm.ops.steps import steps_and_rates
from tests.ops.common import error

LIMITS = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the interpreter cuts bf16 off


def norms(rng, dtype, d=60):
    x, z = torch.randn(2, 2, 3, d + 9, generator=rng)[..., 4 : 4 + d].to(dtype)
    weight, bias = (2 + torch.randn(2, d, generator=rng)).to(dtype)
    return {
        "rms": (rms_norm, (x, weight, 1e-5)),
        "layer": (layer_norm, (x + 3, weight, bias, 1e-5)),
        "gated": (gated_rms_norm, (x, z, weight, 1e-5)),
        "gated in groups": (gated_rms_norm, (x, z, weight, 1e-5, 3)),
        "wide into narrow": (rms_norm, (x.float() + 1, weight, 1e-5)),
    }


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", norms(torch.Generator(), torch.float32))
def test_norms(case, dtype, rng):
    op, args = norms(rng, dtype)[case]
    y = op(*args, backend="triton")
    want = op(*(v.double() if isinstance(v, torch.Tensor) else v for v in args), backend="reference")
    assert y.dtype == dtype
    assert y.shape == want.shape
    assert error(y, want) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_rotary_far_out(dtype, rng):
    """At position 1,000,000 an angle in float32 would be off by 0.03."""
    x = torch.randn(2, 3, 5, 16, generator=rng).to(dtype)[..., 2:14]
    positions = torch.tensor([[0, 1, 2], [1000, 100_003, 1_000_000]])
    for theta in (10000.0, 500000.0):
        y = rotary(x, positions, theta, backend="triton")
        assert y.dtype == dtype
        assert error(y, rotary(x.double(), positions, theta, backend="reference")) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
def test_steps_and_rates(dtype, rng):
    """Small steps keep their digits: log(1 + e^x) of x = -15 is 3e-7."""
    dt = torch.linspace(-15, 15, 2 * 150).reshape(2, 1, 150).to(dtype)
    bias, A_log = torch.randn(150, generator=rng).to(dtype), torch.randn(150, 3, generator=rng).to(dtype)
    for b, A in ((bias, A_log), (None, A_log[:, 0])):
        got = steps_and_rates(dt, b, A, backend="triton")
        want = steps_and_rates(dt.double(), b if b is None else b.double(), A.double(), backend="reference")
        for ours, true in zip(got, want, strict=True):
            assert ours.dtype == torch.float32
            assert ours.shape == true.shape
            assert ((ours.double() - true) / true).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", LIMITS)
def test_slots(dtype, rng):
    first, second = torch.randn(3, 7, 2, 5, generator=rng).to(dtype), torch.randn(3, 7, 3, generator=rng).to(dtype)
    new = torch.randn(3, 2, 2, 9, generator=rng)[..., 2:7], torch.randn(3, 2, 4, generator=rng)[..., :3]
    slots = torch.tensor([[0, 1], [6, 0], [3, 4]])
    for keep in (None, torch.tensor([[True, False], [False, False], [True, True]])):
        ours, want = ((first.clone(), second.clone()) for _ in range(2))
        got = write_slots(ours, new, slots, keep, in_place=True, backend="triton")
        assert all(a is b for a, b in zip(got, ours, strict=True))
        for a, b in zip(ours, write_slots(want, new, slots, keep, in_place=True, backend="reference"), strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=8e-3 if dtype == torch.bfloat16 else 0, atol=0)


def test_what_the_kernels_do_not_take(rng):
    def taken(op, *args, **options):
        with use("triton"), trace() as seen:
            op(*args, **options)
        return seen[0].backend

    x, weight = torch.randn(2, 8, generator=rng), torch.ones(8)
    assert taken(rms_norm, x, weight, 1e-5) == "triton"
    assert taken(layer_norm, x.clone().requires_grad_(), weight, weight, 1e-5) == "reference"
    assert taken(rms_norm, x.double(), weight.double(), 1e-5) == "reference"
    assert taken(steps_and_rates, x[:, None], None, weight) == "triton"
    assert taken(steps_and_rates, x[:, None], None, weight.clone().requires_grad_()) == "reference"
    caches, new, slots = (
        (torch.randn(2, 4, 3), torch.randn(2, 4, 1)),
        (torch.randn(2, 1, 3), torch.randn(2, 1, 1)),
        None,
    )
    slots = torch.zeros(2, 1, dtype=torch.int64)
    assert taken(write_slots, caches, new, slots, in_place=True) == "triton"
    assert taken(write_slots, caches, new, slots) == "reference"


def test_opcheck(rng):
    from hybridlm.ops.norm.triton import normalise
    from hybridlm.ops.rotary.triton import turn
    from hybridlm.ops.slots.triton import write_pair
    from hybridlm.ops.steps.triton import steps_rates

    utils = ("test_schema", "test_faketensor")
    x, weight = torch.randn(2, 8, generator=rng), torch.ones(8)
    torch.library.opcheck(normalise, (x, x.clone(), weight, None, 1e-5, 2, False, torch.float32), test_utils=utils)
    torch.library.opcheck(turn, (torch.randn(1, 2, 3, 4), torch.tensor([[0, 1]]), 10000.0), test_utils=utils)
    torch.library.opcheck(steps_rates, (x, weight, torch.ones(3)), test_utils=utils)
    args = torch.randn(2, 4, 3), torch.randn(2, 4, 1), torch.randn(2, 3), torch.randn(2, 1)
    torch.library.opcheck(write_pair, (*args, torch.zeros(2, 1, dtype=torch.int64), None), test_utils=utils)
