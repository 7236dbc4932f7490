"""What S4's and S4D's ops hold at once at a size of today, on tensors without numbers."""

import pytest
import torch

from hybridlm.ops.diagonal_ssm import diagonal_ssm
from hybridlm.ops.ssm_kernel import s4_scan
from tests.ops.common import largest

MOST = 300e6  # bytes of a temporary
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
