"""Attention, everywhere and over a window, against a dense float64 computation."""

import pytest
import torch
from einops import repeat

from hybridlm.ops.attention import attention, cached_attention, window_attention
from tests.ops.common import documents

BACKENDS = ["reference", "vendor"]


def dense(q, k, v, mask):
    """One head, one query at a time, in float64."""
    b, t, h, p = q.shape
    k, v = (repeat(x, "b s hk p -> b s (hk r) p", r=h // x.shape[2]).double() for x in (k, v))
    y = torch.zeros(b, t, h, p, dtype=torch.float64)
    for row in range(b):
        for i in range(t):
            for head in range(h):
                seen = mask[row, i].nonzero().squeeze(1)
                scores = k[row, seen, head] @ q[row, i, head].double() * p**-0.5
                y[row, i, head] = scores.softmax(0) @ v[row, seen, head]
    return y


def tensors(t=9, s=9, h=4, hk=2, p=8, dtype=torch.float64, b=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, n, m, p, generator=generator).to(dtype) for n, m in ((t, h), (s, hk), (s, hk))]


def error(y, reference) -> float:
    return float((y.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("hk", [1, 2, 4])
def test_causal(backend, dtype, limit, hk):
    q, k, v = tensors(hk=hk, dtype=dtype)
    mask = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    y = attention(q, k, v, causal=True, backend=backend)
    assert y.dtype == dtype
    assert error(y, dense(q, k, v, mask)) < limit
    assert torch.equal(y, attention(q, k, v, mask=mask, backend=backend)) or backend == "vendor"


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask(backend):
    q, k, v = tensors(t=5, s=11)
    mask = torch.rand(2, 5, 11, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[..., 0] = True
    assert error(attention(q, k, v, mask=mask, backend=backend), dense(q, k, v, mask)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_of_their_own_width_and_a_scale(backend):
    """As latent attention needs them."""
    q, k, v = tensors(hk=1)
    mask = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    wide = torch.cat([v, v.flip(1), v[..., :3]], dim=-1)
    y = attention(q, k, wide, causal=True, scale=0.3, backend=backend)
    parts = [dense(q * 0.3 * 8**0.5, k, part, mask) for part in (v, v.flip(1), v)]
    assert y.shape[-1] == 19
    assert error(y, torch.cat(parts, dim=-1)[..., :19]) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents(backend):
    """Of lengths 1, 2, 3, ..., each alone."""
    q, k, v = tensors()
    document = documents(2, 9)
    y = attention(q, k, v, causal=True, document=document, backend=backend)
    for row in range(2):
        for number in document[row].unique():
            at = document[row] == number
            alone = attention(*(x[row : row + 1, at] for x in (q, k, v)), causal=True)
            assert error(y[row, at], alone[0]) < 1e-14


def test_what_another_document_holds_has_no_gradient():
    q, k, v = (x.requires_grad_() for x in tensors())
    document = (torch.arange(9) >= 4).long().expand(2, 9)
    attention(q, k, v, causal=True, document=document)[:, 4:].sum().backward()
    for x in (q, k, v):
        assert (x.grad[:, :4] == 0).all()
        assert (x.grad[:, 4:] != 0).any()


@pytest.mark.parametrize("hk", [1, 4])
@pytest.mark.parametrize("t", [1, 3])
def test_cache(t, hk):
    """Rows at positions of their own, one of which is past the last slot, as in a ring; NaN past the extent."""
    q, k, v = tensors(t=t, s=11, hk=hk)
    positions = torch.tensor([[0], [4]]) + torch.arange(t)
    mask = torch.arange(11) <= positions[..., None]
    k[:, 7:], v[:, 7:] = torch.nan, torch.nan
    y = cached_attention(q, k, v, positions, extent=7)
    assert error(y, dense(q, k, v, mask)) < 1e-14
    ring = cached_attention(q, k[:, :3].float(), v[:, :3].float(), positions, extent=7, scale=0.5)
    assert ring.dtype == q.dtype
    seen = dense(q * 0.5 * 8**0.5, k[:, :3].float(), v[:, :3].float(), mask[..., :3])
    assert error(ring, seen) < 1e-14


def windowed_mask(t, s, size, seen, document):
    i, j = torch.arange(t)[:, None] + s - t, torch.arange(s)
    mask = ((j <= i) & (j > i - size))[None] & (seen[:, None] | (j == i))
    return mask & (document[:, s - t :, None] == document[:, None, :])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("size", [1, 3, 64, 70, 200])
@pytest.mark.parametrize(("t", "before"), [(1, 0), (2, 1), (63, 0), (64, 3), (65, 70), (150, 0), (150, 64)])
def test_window(backend, size, t, before):
    before = min(before, size)
    s = t + before
    q, k, v = tensors(t=t, s=s, h=2, hk=1, p=4)
    generator = torch.Generator().manual_seed(2)
    seen = torch.rand(2, s, generator=generator) > 0.3
    seen[:, s - t :] = True
    document = (torch.rand(2, s, generator=generator) > 0.9).cumsum(1)
    y = window_attention(q, k, v, size=size, seen=seen, document=document, backend=backend)
    assert error(y, dense(q, k, v, windowed_mask(t, s, size, seen, document))) < 1e-14


def test_a_window_as_long_as_the_text_is_full_attention():
    q, k, v = tensors(t=100, s=100)
    full = attention(q, k, v, causal=True)
    for size in (100, 101, 1000):
        torch.testing.assert_close(window_attention(q, k, v, size=size), full)


@pytest.mark.parametrize(("t", "s", "size"), [(4, 8, 4), (4, 8, 3), (4, 8, 8), (1, 5, 1), (4, 8, 20)])
def test_a_window_after_keys_that_all_exist(t, s, size):
    q, k, v = tensors(t=t, s=s)
    nowhere = torch.zeros(2, s, dtype=torch.int64)
    mask = windowed_mask(t, s, size, nowhere == 0, nowhere)
    assert error(window_attention(q, k, v, size=size), dense(q, k, v, mask)) < 1e-14


def test_what_no_query_may_see_has_no_gradient():
    q, k, v = (x.requires_grad_() for x in tensors(t=40, s=40))
    document = (torch.arange(40) >= 17).long().expand(2, 40)
    window_attention(q, k, v, size=10, document=document)[:, 17:].sum().backward()
    for x in (q, k, v):
        assert (x.grad[:, :17] == 0).all()
        assert (x.grad[:, 17:] != 0).any()
