"""Long convolution against the sum it stands for, packed documents against the same documents apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import UnsupportedError
from hybridlm.ops.long_conv import documents, long_conv, reference
from hybridlm.ops.long_conv.reference import LongConv
from hybridlm.ops.long_conv.transform import fft_length
from tests.ops.common import largest

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}


def by_definition(u, k, D):
    """y_i = sum_{j <= i} k_j u_{i-j} + D u_i in numpy float64, one tap after the other."""
    u, k, D = (x.double().numpy() for x in (u, k, D))
    y = D * u
    for lag in range(u.shape[1]):
        y[:, lag:] += k[:, lag] * u[:, : u.shape[1] - lag]
    return torch.from_numpy(y)


def inputs(b, t, d, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    u, k, D = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((b, t, d), (d, t), (d,)))
    return u.to(dtype), (k * torch.linspace(0, -3, t).exp()).to(dtype), D.to(dtype)


def check(y, expected, limit):
    """RMS error relative to the RMS, and no single token more than ten times worse."""
    error = (y.double() - expected).square()
    scale = expected.square().mean()
    assert error.mean() <= limit**2 * scale
    assert error.mean(dim=-1).max() <= (10 * limit) ** 2 * scale


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("t", [1, 2, 7, 1000, 4096])
def test_equals_its_definition(t, dtype):
    u, k, D = inputs(2, t, 3, dtype)
    y = long_conv(u, k, D)
    assert y.dtype == dtype
    check(y, by_definition(u, k, D), LIMIT[dtype])


def test_half_precision_is_computed_in_float32():
    u, k, D = inputs(2, 100, 3, torch.bfloat16)
    y = long_conv(u, k.float(), D)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, long_conv(u.float(), k.float(), D.float()).bfloat16())


def test_the_skip_is_optional_and_a_longer_filter_is_cut():
    u, k, D = inputs(2, 20, 3)
    assert torch.equal(long_conv(u[:, :9], k), long_conv(u[:, :9], k[:, :9]))
    torch.testing.assert_close(long_conv(u, k) + D * u, long_conv(u, k, D), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", LIMIT)
def test_the_future_does_not_reach_the_past(dtype):
    u, k, D = inputs(1, 50, 3, dtype)
    loud = torch.cat([u[:, :30], 1e3 * u[:, 30:]], dim=1)
    error = (long_conv(loud, k, D) - long_conv(u, k, D))[:, :30].abs().max()
    assert error <= LIMIT[dtype] * loud.square().mean().sqrt()


def apart(u, k, D, document):
    """Each row's documents, convolved one by one."""
    rows = []
    for row, ids in zip(u, document, strict=True):
        pieces = row.split(torch.unique_consecutive(ids, return_counts=True)[1].tolist())
        rows.append(torch.cat([by_definition(piece[None], k, D)[0] for piece in pieces]))
    return torch.stack(rows)


def in_rows(u, k, D, document):
    """As on a CPU."""
    return long_conv(u, k, D, document=document)


def in_halves(u, k, D, document):
    """As on a GPU, and wherever a compiler traces."""
    return LongConv.apply(u, k, D, document)


both_ways = pytest.mark.parametrize("packed_conv", [in_rows, in_halves])


@both_ways
@given(st.lists(st.lists(st.integers(0, 1), min_size=23, max_size=23), min_size=1, max_size=3))
def test_packed_documents_equal_documents_apart(packed_conv, steps):
    document = torch.tensor(steps).cumsum(dim=1)
    u, k, D = inputs(len(steps), 23, 2)
    check(packed_conv(u, k, D, document), apart(u, k, D, document), 1e-13)


@pytest.mark.parametrize("short", [1, 4, 64])
@pytest.mark.parametrize("t", [1, 2, 3, 16, 37, 130])
def test_halves_by_matrix_products_and_by_ffts(t, short, monkeypatch):
    monkeypatch.setattr(documents, "SHORT", short)
    document = (torch.rand(3, t) < torch.tensor([[0.5], [0.05], [0]])).long().cumsum(dim=1)
    leaves = [x.requires_grad_() for x in inputs(3, t, 2)]
    found = [f(*leaves, document) for f in (in_halves, in_rows)]
    up = torch.randn_like(found[0])
    for one, two in zip(*([y, *torch.autograd.grad(y, leaves, up)] for y in found), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_halves_do_not_look_at_documents(compiler):
    """One graph for all documents, and no wait for the device."""
    compiled = torch.compile(lambda *args: long_conv(*args[:3], document=args[3]), fullgraph=True, backend="aot_eager")
    args = inputs(2, 20, 3)
    for every in (3, 7, 30):
        document = torch.arange(20).div(every, rounding_mode="floor").expand(2, -1)
        torch.testing.assert_close(compiled(*args, document), in_rows(*args, document), rtol=0, atol=1e-13)
    assert compiler["unique_graphs"] == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("compiler")
def test_compiled_it_has_the_same_gradients(packed):
    leaves = [x.requires_grad_() for x in inputs(2, 16, 3)]
    document = torch.arange(16).div(5, rounding_mode="floor").expand(2, -1) if packed else None
    compiled = torch.compile(long_conv, fullgraph=True, backend="aot_eager")
    up = torch.randn(2, 16, 3, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(f(*leaves, document=document), leaves, up) for f in (compiled, long_conv))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_lengths_of_an_octave_are_one_graph(compiler):
    compiled = torch.compile(long_conv, fullgraph=True, backend="aot_eager", dynamic=True)
    for t in (35, 41, 46, 39):
        args = inputs(2, t, 3)
        torch.testing.assert_close(compiled(*args), long_conv(*args))
    assert compiler["unique_graphs"] == 1


@pytest.mark.parametrize("document", [None, torch.tensor([0] * 5 + [1] * 11).expand(2, -1)])
def test_channels_part_by_part(document, monkeypatch):
    leaves = [x.requires_grad_() for x in inputs(2, 16, 5)]

    def found():
        y = LongConv.apply(*leaves, document)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    whole = found()
    monkeypatch.setattr(reference, "BYTES", 1)
    for one, two in zip(found(), whole, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_temporaries_are_bounded(packed, dtype):
    """At 8 x 4096 x 1024 too: besides what is given and asked for, nothing is larger than BYTES, or little more."""
    u, k, D = (torch.empty(size, device="meta", dtype=dtype) for size in ((8, 4096, 1024), (1024, 4096), (1024,)))
    document = torch.zeros(8, 4096, device="meta", dtype=torch.int64) if packed else None
    leaves = [u.requires_grad_(), k.double().requires_grad_(), D.requires_grad_()]
    most = largest(lambda: LongConv.apply(*leaves, document).sum().backward())
    assert u.nbytes <= most <= 1.01 * reference.BYTES


@both_ways
def test_documents_are_apart_to_the_last_bit(packed_conv):
    """A neighbour of 1e30 leaves no trace, neither in outputs nor in gradients."""
    u, k, D = inputs(2, 16, 3, torch.float32)
    document = torch.tensor([[0] * 5 + [1] * 11, [1] * 5 + [2] * 11])
    loud = torch.cat([1e30 * u[:, :5], u[:, 5:]], dim=1).requires_grad_()
    y = packed_conv(loud, k, D, document)
    assert torch.equal(y[:, 5:], packed_conv(u, k, D, document)[:, 5:])
    y[:, 5:].square().sum().backward()
    assert not loud.grad[:, :5].any()
    assert loud.grad[:, 5:].all()


@pytest.mark.parametrize("conv", [in_rows, in_halves])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(packed, conv):
    u, k, D = (x.requires_grad_() for x in inputs(2, 7, 2))
    document = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]]) if packed else None

    def transposed(u, k, D):
        return conv(u, k, D, document).mT  # its gradient arrives with foreign strides

    assert torch.autograd.gradcheck(transposed, (u, k, D), fast_mode=True)
    if not packed or conv is in_halves:
        assert torch.autograd.gradgradcheck(transposed, (u, k, D), fast_mode=True)


def test_strides_do_not_matter():
    u, k, D = inputs(2, 12, 4)
    assert torch.equal(long_conv(u.mT.contiguous().mT, k.mT.contiguous().mT, D), long_conv(u, k, D))
    same = u[:1].expand(2, -1, -1)
    assert torch.equal(long_conv(same, k, D), long_conv(same.contiguous(), k, D))


def test_vmap():
    u, k, D = inputs(3, 12, 4)
    many = torch.func.vmap(lambda row, scale: long_conv(row[None], k * scale, D)[0])(u, torch.tensor([1.0, 2.0, 3.0]))
    alone = torch.cat([long_conv(u[i : i + 1], k * (i + 1), D) for i in range(3)])
    torch.testing.assert_close(many, alone, rtol=0, atol=1e-13)


def test_repeats_bit_for_bit():
    u, k, D = inputs(2, 333, 4, torch.float32)
    document = torch.arange(333).div(50, rounding_mode="floor").expand(2, -1)
    assert all(torch.equal(long_conv(u, k, D), long_conv(u, k, D)) for _ in range(3))
    assert torch.equal(long_conv(u, k, D, document=document), long_conv(u, k, D, document=document))


def test_fft_length_is_enough_and_smooth():
    for least in [*range(1, 200), 8191, 8193]:
        n = fft_length(least)
        assert least <= n <= max(1.5 * least, least + 1)
        assert n // (n & -n) in (1, 3)


def test_a_backend_that_is_missing_is_refused():
    u, k, D = inputs(1, 4, 2)
    with pytest.raises(UnsupportedError, match="long_conv"):
        long_conv(u, k, D, backend="triton")
    assert np.isfinite(long_conv(u, k, D, backend="reference").numpy()).all()
