"""Where a model can live and in what numbers."""

from __future__ import annotations

import pytest
import torch

from hybridlm.compose.memory import DTYPES, dtype_name


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
def test_a_dtype_is_named_as_a_user_writes_it(dtype):
    assert getattr(torch, dtype_name(dtype)) is dtype
    assert "." not in dtype_name(dtype)
