"""Every registered mixer against every law of state on a GPU, by the backends that `auto` takes and by those named."""

import functools

import pytest
import torch

from hybridlm.registry import mixers
from hybridlm.testing import LAWS, Solo, require
from hybridlm.testing.check import numbers, prove

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]


@functools.cache
def subject(mixer: str, backend: str, dtype: torch.dtype) -> Solo:
    return Solo(mixer, backend=backend, dtype=dtype, device="cuda", d_model=64)


@pytest.mark.parametrize("number", numbers())
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("mixer", mixers.names())
def test_law(mixer, dtype, number):
    require(LAWS[number].check(subject(mixer, "auto", dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("backend", ["triton", "vendor"])
@pytest.mark.parametrize("mixer", mixers.names())
def test_by_a_named_backend(mixer, backend, dtype):
    """Outputs, splits, packing, gradients. Skipped where no op of the mixer has such a kernel."""
    results = prove(subject(mixer, backend, dtype), ["C1", "C2", "C5", "C6", "C14", "C15"])
    if results[0].verdict == "refused":
        pytest.skip(results[0].detail)
    require(results)
