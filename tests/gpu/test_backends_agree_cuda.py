"""Law C15 on a GPU: what runs there against the float64 reference, in sizes of several chunks, the last one short."""

import pytest
import torch

from hybridlm.ops.draw import SMALL
from tests.ops.common import CALL_NAMES, CALLS, assert_agrees

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "triton", "vendor"])
@pytest.mark.parametrize(("op", "case"), CALLS, ids=CALL_NAMES)
def test_on_a_gpu(op, case, backend, dtype):
    assert_agrees(op, case, dtype, backend, SMALL, "cuda")
