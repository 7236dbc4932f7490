"""What custom ops cost, as PyTorch's FLOP counter sees them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.ops.causal_conv import triton as conv
from hybridlm.ops.flops import tell
from hybridlm.ops.selective_scan import triton as scan
from hybridlm.ops.selective_scan import vendor as mamba
from hybridlm.ops.selective_scan.reference import scan_flops
from hybridlm.ops.ssd import triton as ssd
from hybridlm.ops.ssd import vendor as mamba2
from hybridlm.ops.ssd.reference import ssd_flops


def counted(f) -> int:
    tell()
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


def meta(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.empty(shape, device="meta", requires_grad=grad)


@pytest.mark.parametrize("op", [ssd._ssd, mamba2._ssd], ids=["ours", "mamba_ssm"])
def test_ssd_counts_once_forward_and_twice_backward(op):
    b, t, h, p, g, n = 2, 100, 4, 8, 2, 16
    call = (meta(b, t, h, p), meta(b, t, h), meta(h), meta(b, t, g, n), meta(b, t, g, n), meta(h), None, None)
    once = b * sum(ssd_flops(t, h, p, g, n, 64))
    assert counted(lambda: op(*call)) == once
    assert counted(lambda: op(*call)[0].sum().backward()) == 3 * once


@pytest.mark.parametrize("op", [scan._selective_scan, mamba._scan], ids=["ours", "mamba_ssm"])
def test_the_selective_scan_counts_once_forward_and_twice_backward(op):
    b, t, d, n = 2, 100, 8, 16
    call = [meta(b, t, d), meta(b, t, d), meta(d, n), meta(b, t, n), meta(b, t, n), meta(d)]
    call += [None, None] if op is scan._selective_scan else []
    once = b * sum(scan_flops(t, d, n))
    assert counted(lambda: op(*call)) == once
    assert counted(lambda: op(*call)[0].sum().backward()) == 3 * once


def test_the_short_convolution_counts_a_product_and_a_sum_a_tap():
    call = (meta(2, 10, 8), meta(8, 4), None, None, None, True)
    assert counted(lambda: conv._conv(*call)) == 2 * 4 * math.prod((2, 10, 8))


@pytest.mark.parametrize(("t", "s", "size"), [(5, 5, 3), (5, 9, 3), (7, 7, 20), (1, 4, 4), (6, 8, 7)])
def test_a_window_counts_the_pairs_that_see_each_other(t, s, size):
    from hybridlm.ops.attention import flash

    pairs = sum(min(size, i + s - t + 1) for i in range(t))
    q, k, v = (torch.empty(2, length, 3, 8, device="meta", dtype=torch.bfloat16) for length in (t, s, s))
    assert counted(lambda: flash._window(q, k, v, size)) == 2 * 3 * 4 * 8 * pairs
