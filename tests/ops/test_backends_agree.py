"""Law C15: every backend of every op that can run here, against the float64 reference.

Forward, final state and every gradient, in each dtype. Triton's kernels run in its interpreter; tests/gpu has the same
on a GPU.
"""

import pytest
import torch

from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.ops import backend
from hybridlm.ops.agreement import agreement
from hybridlm.ops.draw import TINY, Example
from hybridlm.ops.examples import draw
from tests.ops.common import CALL_NAMES, CALLS, assert_agrees


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "case"), CALLS, ids=CALL_NAMES)
def test_the_reference(op, case, dtype):
    """In each dtype against itself in float64: the limits are ones that can be kept, and the examples are sound."""
    assert_agrees(op, case, dtype, "reference", TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "case"), CALLS, ids=CALL_NAMES)
def test_the_vendor_on_a_cpu(op, case, dtype):
    assert_agrees(op, case, dtype, "vendor", TINY)


QUICK = ("packed", "decoding", "one")  # cases of the default tier: the interpreter is slow


@pytest.mark.skipif(not backend.INTERPRETING, reason="TRITON_INTERPRET=1 runs Triton's kernels on a CPU")
@pytest.mark.parametrize(
    ("op", "case"),
    [pytest.param(*call, marks=() if call[1] in QUICK else pytest.mark.deep) for call in CALLS],
    ids=CALL_NAMES,
)
def test_our_kernels_in_the_interpreter(op, case):
    """In float32: the interpreter does not know bfloat16 (it multiplies bits), which tests/gpu looks at."""
    assert_agrees(op, case, torch.float32, "triton", TINY)


# ------------------------------------------------------------------------------------------------ the comparison itself
def off_by(error, row=slice(None)):
    """An op whose vendor is off by so much in some rows, and whose gradient is off by as much."""

    def op(x, backend):
        y = x.sin()
        if backend == "vendor":
            y = y.clone()
            y[row] = y[row] * (1 + error)
        return y

    return Example("op", "plain", op, {"x": torch.randn(50, 4, 8)}, {})


def test_a_vendor_that_is_off_is_seen():
    assert all(one.strain < 1 for one in agreement(off_by(1e-7), "vendor"))
    assert {one.name: one.strain > 1 for one in agreement(off_by(1e-5), "vendor")} == {"y": True, "d x": True}
    assert [one.name for one in agreement(off_by(1e-5), "vendor", gradients=False)] == ["y"]


def test_one_bad_token_is_seen_and_so_is_a_nan():
    """One of 200 off by 2.5e-5 is 1.8e-6 of the whole, under the limit; it alone is over ten limits."""
    y, _ = agreement(off_by(2.5e-5, (7, 2)), "vendor")
    assert y.error < y.limit
    assert y.strain > 1
    assert next(agreement(off_by(torch.nan, (7, 2)), "vendor")).strain == torch.inf


def test_a_tensor_that_only_one_of_them_gives_is_an_error():
    example = Example("op", "plain", lambda x, backend: (x, x)[: 1 + (backend == "vendor")], {"x": torch.ones(2)}, {})
    with pytest.raises(AssertionError, match="vendor gives y, state 1"):
        list(agreement(example, "vendor"))


def test_pads_are_not_compared():
    example = draw("lstm", "ragged", TINY)
    y = example("reference")[0]
    assert y[1, TINY.t // 2 :].abs().max() == 0
    assert y[1, TINY.t // 2 - 1].abs().max() > 0


def test_an_op_or_case_or_backend_that_is_not_there():
    with pytest.raises(SpecError, match="Did you mean 'ssd'"):
        draw("sdd")
    with pytest.raises(SpecError, match="ssd has no case 'ragged'"):
        draw("ssd", "ragged")
    with pytest.raises(UnsupportedError, match="no 'vendor' backend"):
        draw("rotary", "plain", TINY)("vendor")
