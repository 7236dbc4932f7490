"""What S4's and S4D's ops hold at once at a size of today, on tensors without numbers."""

import pytest
import torch

from hybridlm.ops import lti
from hybridlm.ops.diagonal_ssm import diagonal_ssm
from hybridlm.ops.ssm_kernel import s4_scan
from tests.ops.common import largest

MOST = 1.01 * 2**27  # bytes of a temporary: x itself in float32
B, T, D, COUPLES = 8, 4096, 1024, 32


def run(name, dtype, state):
    """Forward and backward."""

    def empty(*size, dtype=torch.float32):
        return torch.empty(size, device="meta", dtype=dtype, requires_grad=True)

    x, pairs, D_, dt = empty(B, T, D, dtype=dtype), [empty(D, COUPLES, 2) for _ in range(4)], empty(D), empty(D)
    more = {"state": empty(B, D, COUPLES, 2)} if state else {}
    op, pairs = (s4_scan, pairs) if name == "s4" else (diagonal_ssm, pairs[:3])
    y, h = op(x, *pairs, D_, dt, **more)
    (y.sum() if h is None else y.sum() + h.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_no_temporary_is_large(name, state, dtype):
    most = largest(lambda: run(name, dtype, state))
    assert B * T * D * 4 <= most <= MOST


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_states_are_handed_over_part_by_part(name, monkeypatch):
    """Some channels at a time give what all of them at once give."""
    x, Lambda, P, B_, C = (torch.randn(size, dtype=torch.float64) for size in ((2, 9, 5), *[(5, 3, 2)] * 4))
    D_, dt, state = torch.randn(5).double(), torch.rand(5).double(), torch.randn(2, 5, 3, 2).double()
    Lambda[..., 0] = -Lambda[..., 0].abs()
    document = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])

    def found():
        if name == "s4":
            return s4_scan(x, Lambda, P, B_, C, D_, dt, state=state, document=document)
        return diagonal_ssm(x, Lambda, B_, C, D_, dt, state=state, document=document)

    whole = found()
    monkeypatch.setattr(lti, "BYTES", 2 * 8 * 2 * 9)
    for one, two in zip(found(), whole, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
