"""What stands between attention and the packages: flash-attn as functions of its signatures, FlexAttention's blocks."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn.attention.flex_attention import create_mask

from hybridlm.ops import backend
from hybridlm.ops.attention import attention, cached_attention, flash, flex, vendor, window_attention
from hybridlm.ops.attention.masks import causal_in_document
from tests.ops.common import documents, error


# --------------------------------------------------------------------------------------------------- flash-attn, played
def softmax(q, k, scale, left):
    """One sequence: causal from the bottom right corner, at most `left` keys back. -> (h, t, s), log of its sums."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("ihp,jhp->hij", q, k) * scale
    i, j = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0], torch.arange(k.shape[0])
    scores = scores.masked_fill((j > i) | (j < i - left), -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1).float()


def attend(q, k, v, scale, left):
    weights, sums = softmax(q, k, scale, left)
    return torch.einsum("hij,jhp->ihp", weights, v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)), sums


def pull_back(dy, q, k, v, scale, left):
    heads = q.shape[1] // k.shape[1]
    weights, _ = softmax(q, k, scale, left)
    dweights = torch.einsum("ihp,jhp->hij", dy, v.repeat_interleave(heads, dim=1))
    dscores = scale * weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
    dq = torch.einsum("hij,jhp->ihp", dscores, k.repeat_interleave(heads, dim=1))
    dk, dv = torch.einsum("hij,ihp->jhp", dscores, q), torch.einsum("hij,ihp->jhp", weights, dy)
    return dq, *(x.unflatten(1, (-1, heads)).sum(2) for x in (dk, dv))


def forward(
    q,
    k,
    v,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    return_softmax,
):
    assert (dropout_p, causal, window_size_right, softcap, alibi_slopes, return_softmax) == (0, True, 0, 0, None, False)
    rows = [attend(*row, softmax_scale, window_size_left) for row in zip(q, k, v, strict=True)]
    return *(torch.stack(x) for x in zip(*rows, strict=True)), None, None


def backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):
    assert out.shape == q.shape
    assert softmax_lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    assert (dropout_p, causal, window_size_right, softcap, alibi_slopes) == (0, True, 0, 0, None)
    for row in range(len(q)):
        grads = pull_back(dout[row], q[row], k[row], v[row], softmax_scale, window_size_left)
        for put, grad in zip((dq, dk, dv), grads, strict=True):
            put[row] = grad


def spans(bounds):
    assert bounds.dtype == torch.int32
    return list(zip(bounds.tolist(), bounds.tolist()[1:], strict=False))


def varlen_forward(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left=-1,
    window_size_right=-1,
):
    assert (dropout_p, causal, window_size_right) == (0, True, 0)
    assert max_seqlen_q == max_seqlen_k == max(end - start for start, end in spans(cu_seqlens_q))
    parts = [attend(q[i:j], k[i:j], v[i:j], softmax_scale, window_size_left) for i, j in spans(cu_seqlens_q)]
    y, sums = zip(*parts, strict=True)
    return torch.cat(y), torch.cat(sums, dim=1), None, None


def varlen_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
):
    assert (dropout_p, causal, window_size_right, softcap, alibi_slopes) == (0, True, 0, 0, None)
    assert softmax_lse.shape == (q.shape[1], q.shape[0])
    for i, j in spans(cu_seqlens_q):
        dq[i:j], dk[i:j], dv[i:j] = pull_back(dout[i:j], q[i:j], k[i:j], v[i:j], softmax_scale, window_size_left)


def with_kvcache(q, k_cache, v_cache, cache_seqlens=None, softmax_scale=None):
    assert cache_seqlens.dtype == torch.int32
    assert k_cache.stride(-1) == 1
    assert cache_seqlens.max() <= k_cache.shape[1]
    rows = enumerate(cache_seqlens.tolist())
    return torch.stack([attend(q[i], k_cache[i, :n], v_cache[i, :n], softmax_scale, n)[0] for i, n in rows])


FUNCTIONS = {
    "_wrapped_flash_attn_forward": forward,
    "_wrapped_flash_attn_backward": backward,
    "_wrapped_flash_attn_varlen_forward": varlen_forward,
    "_wrapped_flash_attn_varlen_backward": varlen_backward,
    "flash_attn_with_kvcache": with_kvcache,
}


@pytest.fixture
def played(monkeypatch):
    """flash-attn is installed."""
    probe = backend._probe

    def found(module, attribute):
        return (FUNCTIONS[attribute], None) if module == flash.INTERFACE else probe(module, attribute)

    monkeypatch.setattr(backend, "_probe", found)


def tensors(t=9, s=None, h=4, hk=2, p=8, dtype=torch.float64):
    s = t if s is None else s
    return [torch.randn(2, n, m, p, dtype=dtype).requires_grad_() for n, m in ((t, h), (s, hk), (s, hk))]


def same(ours, true, leaves):
    """Outputs, and gradients of the leaves for an output gradient that is not contiguous."""
    assert error(ours, true.detach()) < 1e-14
    dy = torch.randn(ours.transpose(1, 2).shape, dtype=ours.dtype).transpose(1, 2)
    for one, other in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(true, leaves, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("t", "s", "size"), [(9, 9, 3), (9, 9, 1), (5, 9, 7), (1, 9, 4)])
def test_flash_window(played, t, s, size):
    q, k, v = tensors(t, s)
    same(flash.window_attention(q, k, v, size), window_attention(q, k, v, size=size, backend="reference"), [q, k, v])


@pytest.mark.parametrize("size", [None, 1, 2, 40])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_flash_packed(played, size, scale):
    q, k, v = tensors(12)
    document = documents(2, 12)
    mask = causal_in_document(document)
    if size is not None:
        mask = mask & (torch.arange(12) > torch.arange(12)[:, None] - size)
    ours = flash.packed_attention(q, k, v, document, size, scale)
    same(ours, attention(q, k, v, mask=mask, scale=scale, backend="reference"), [q, k, v])


def test_flash_packed_bounds():
    document = torch.tensor([[0, 0, 1, 1], [1, 1, 2, 2], [0, 2, 2, 2]])
    bounds, longest = flash._bounds(document)
    assert (bounds.tolist(), longest) == ([0, 2, 4, 6, 8, 9, 12], 3)


@pytest.mark.parametrize("hk", [1, 4])
def test_flash_cached(played, hk):
    """Rows at positions of their own; the last is past the slots, as in a ring."""
    q, k, v = (x.detach() for x in tensors(1, 11, hk=hk))
    for scale in (None, 0.3):
        positions = torch.tensor([[3], [25]])
        ours = flash.cached_attention(q, k, v, positions, 26, scale)
        assert error(ours, cached_attention(q, k, v, positions, extent=26, scale=scale, backend="reference")) < 1e-14


def test_flash_ops_are_ops(played):
    q, k, v = tensors(12)
    document = documents(2, 12)
    opcheck(flash._window, (q, k, v, 3))
    bounds, longest = flash._bounds(document)
    opcheck(flash._packed, (*(x.detach().flatten(0, 1).requires_grad_() for x in (q, k, v)), bounds, longest, 4, 0.3))
    opcheck(flash._cached, (q[:, :1].detach(), k.detach(), v.detach(), torch.tensor([3, 9], dtype=torch.int32), 0.3))


def test_flash_compiles(played):
    def call(q, k, v):
        return flash.window_attention(q, k, v, 3)

    q, k, v = tensors()
    same(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), call(q, k, v), [q, k, v])


# ----------------------------------------------------------------------------------------------- what is taken, and why
def on_gpu(t=64, s=None, h=4, hk=2, p=64, dtype=torch.bfloat16):
    """Tensors of a GPU that nobody has."""
    s = t if s is None else s
    return [torch.empty(2, n, m, p, dtype=dtype, device="cuda") for n, m in ((t, h), (s, hk), (s, hk))]


def test_flash_says_what_it_lacks(played, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert flash.lacks(*tensors()) == "flash-attn needs a GPU"
    with FakeTensorMode():
        assert flash.lacks(*on_gpu()) is None
        assert flash.packed_lacks(*on_gpu()) is None
        assert "bfloat16 only" in flash.lacks(*on_gpu(dtype=torch.float16))
        assert "multiple of 8 up to 128" in flash.lacks(*on_gpu(p=20))
        assert "multiple of 8 up to 128" in flash.lacks(*on_gpu(p=136))
        assert flash.cached_lacks(*on_gpu(1, 64)) is None
        assert flash.cached_lacks(*on_gpu(2, 64)) == "flash-attn is taken for one query a row"
        wanting = [x.requires_grad_() for x in on_gpu(1, 64)]
        assert "no gradient" in flash.cached_lacks(*wanting)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert "neither compiled nor captured" in flash.packed_lacks(*on_gpu())


def test_autocast_asks_for_one_dtype():
    """Queries and keys that a norm left in float32 meet values in bfloat16."""
    q, k, v = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for y in (
            attention(q, k, v.bfloat16(), causal=True, backend="reference"),
            attention(q, k, v.bfloat16(), causal=True),
            window_attention(q, k, v.bfloat16(), size=3),
            cached_attention(q, k, v.bfloat16(), torch.arange(9).expand(2, -1), extent=9),
        ):
            assert y.dtype == torch.bfloat16
            assert y.requires_grad
        assert attention(*tensors(), causal=True).dtype == torch.float64


def test_a_head_each():
    """Query head i reads key head i // (heads / hk), as in the reference."""
    q, k, v = tensors()
    expanded = (vendor._a_head_each(x, 4) for x in (k, v))
    same(attention(q, *expanded, causal=True), attention(q, k, v, causal=True, backend="reference"), [q, k, v])
    assert vendor._a_head_each(q, 4) is q


def test_a_window_is_taken_by_whom_it_can_be(played, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(flex, "triton_missing", lambda: None)
    with FakeTensorMode():
        document = torch.zeros(2, 64, dtype=torch.int64, device="cuda")
        long = torch.zeros(2, 2048, dtype=torch.int64, device="cuda")
        assert vendor.window_lacks(*on_gpu(), None, None) is None
        assert vendor.window_lacks(*on_gpu(), None, document) is None
        assert vendor.window_lacks(*on_gpu(5, 64), None, None) is None
        assert "which keys exist" in vendor.window_lacks(*on_gpu(), document == 0, None)
        assert "from 1024 tokens on" in vendor.window_lacks(*on_gpu(dtype=torch.float32), None, None)
        assert "nothing came before" in vendor.window_lacks(*on_gpu(5, 64, dtype=torch.float32), None, None)
        assert vendor.window_lacks(*on_gpu(2048, dtype=torch.float32), None, long) is None
        assert "at most 32 bits" in vendor.window_lacks(*on_gpu(2048, dtype=torch.float64), None, long)
        assert "width 16 or more" in vendor.window_lacks(*on_gpu(2048, p=8, dtype=torch.float32), None, long)
    assert "needs a GPU" in vendor.window_lacks(*tensors(), None, None)


# -------------------------------------------------------------------------------------------------------- FlexAttention
def dense(document, t, size):
    i, j = torch.arange(t)[:, None], torch.arange(t)
    seen = (j <= i) & (j > i - (t if size is None else size))
    return seen[None] if document is None else seen & (document[:, :, None] == document[:, None])


@pytest.mark.parametrize("t", [1, 127, 128, 300, 512])
@pytest.mark.parametrize("size", [None, 1, 128, 200, 255, 256])
@pytest.mark.parametrize("lengths", [None, [40], [100, 28, 172], [128]])
def test_flex_blocks(t, size, lengths):
    """Every block that is computed without a mask is seen wholly, and every block that is left out is not seen."""
    document = None if lengths is None else torch.arange(t).div(sum(lengths), rounding_mode="floor").expand(2, -1)
    if lengths is not None:
        bounds = torch.tensor(lengths).cumsum(0)
        document = torch.stack([torch.bucketize(torch.arange(t), bounds, right=True), document[0]])
    mask, seen = flex.block_mask(document, t, size, torch.device("cpu")), dense(document, t, size)
    assert torch.equal(create_mask(mask.mask_mod, len(seen), None, t, t, device="cpu")[:, 0], seen)
    n = -(-t // flex.BLOCK)
    padded = torch.zeros(len(seen), n * flex.BLOCK, n * flex.BLOCK, dtype=torch.bool)
    padded[:, :t, :t] = seen
    tiles = padded.unflatten(1, (n, flex.BLOCK)).unflatten(3, (n, flex.BLOCK)).movedim(3, 2).flatten(3)
    some, whole = flex._blocks(document, t, size, torch.device("cpu"))
    assert torch.equal(some, tiles.any(-1))
    rows = (torch.arange(n) * flex.BLOCK)[:, None] + torch.arange(flex.BLOCK) < t  # of the last block of queries
    every = (tiles.unflatten(3, (flex.BLOCK, flex.BLOCK)) | ~rows[None, :, None, :, None]).all(-1).all(-1)
    assert torch.equal(whole, every)
    assert mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum() == some.sum()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("size", [None, 70])
def test_flex_attention(size):
    """Forward only: on a CPU it has no backward pass."""
    q, k, v = (x.detach() for x in tensors(300, p=16))
    document = documents(2, 300) // 6
    run = flex._packed(q, k, v, document, size, 0.3)
    true = attention(q, k, v, mask=dense(document, 300, size), scale=0.3, backend="reference")
    assert error(run, true) < 1e-14
