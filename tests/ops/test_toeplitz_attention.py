"""Attention by a diagonal state space against a loop over rows and tokens, and against FFTs of every entry of k v^T."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.diagonal_ssm import RULES, diagonal_ssm
from hybridlm.ops.toeplitz_attention import by_chunk, reference, toeplitz_attention, toeplitz_attention_flops
from tests.ops.common import assert_autocast_changes_nothing, documents, error, largest

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
NAMES = ("q", "k", "v", "Lambda", "B", "C", "D", "dt")


# ---------------------------------------------------------------------------------------------------------- the oracles
def oracle(q, k, v, Lambda, B, C, D, dt, rule="zoh", state=None, lengths=None, document=None):
    """One row, one token at a time, complex128. y is 0 at pads."""
    q, k, v, D, dt = (x.detach().double() for x in (q, k, v, D, dt[:, None]))
    A, B, C = (torch.view_as_complex(x.detach().double().contiguous()) for x in (Lambda, B, C))
    grown = torch.exp(dt * A) if rule == "zoh" else (1 + dt / 2 * A) / (1 - dt / 2 * A)
    driven = (grown - 1) / A * B if rule == "zoh" else dt / (1 - dt / 2 * A) * B
    H = torch.zeros(*v.shape[:1], *v.shape[2:], v.shape[3], A.shape[1], dtype=A.dtype)
    H = H if state is None else torch.view_as_complex(state.detach().double().contiguous()).clone()
    y = torch.zeros_like(v)
    for row in range(len(v)):
        current = 0
        for i in range(v.shape[1] if lengths is None else lengths[row]):
            if document is not None and int(document[row, i]) != current:
                current, H[row] = int(document[row, i]), 0
            entries = k[row, i, :, :, None] * v[row, i, :, None]
            H[row] = grown[:, None, None] * H[row] + entries[..., None] * driven[:, None, None]
            kept = 2 * (C[:, None, None] * H[row]).sum(-1).real + D[:, None, None] * entries
            y[row, i] = (q[row, i, :, :, None] * kept).sum(1)
    return y, torch.view_as_real(H)


def by_fft(q, k, v, Lambda, B, C, D, dt, rule="zoh", state=None, lengths=None, document=None):
    """Every entry of k v^T as a row of `diagonal_ssm`."""
    b, p = v.shape[0], v.shape[-1]
    rows = {"lengths": lengths, "document": document}
    rows = {name: None if x is None else x.repeat_interleave(p * p, dim=0) for name, x in rows.items()}
    kv = rearrange(k[..., None] * v[..., None, :], "b t h i j -> (b i j) t h")
    state = None if state is None else rearrange(state, "b h i j n two -> (b i j) h n two")
    y, after = diagonal_ssm(kv, Lambda, B, C, D, dt, rule=rule, state=state, **rows)
    y = (q[..., None] * rearrange(y, "(b i j) t h -> b t h i j", i=p, j=p)).sum(-2)
    return y, after if after is None else rearrange(after, "(b i j) h n two -> b h i j n two", b=b, i=p)


def inputs(t, b=3, h=2, p=3, n=3, dtype=torch.float64):
    """q, k, v and a system of no particular structure."""
    q, k, v = (torch.randn(b, t, h, p) for _ in range(3))
    Lambda = torch.stack([-torch.rand(h, n).exp(), 10 * torch.randn(h, n)], dim=-1)
    system = Lambda, torch.randn(h, n, 2), torch.randn(h, n, 2), torch.randn(h), torch.rand(h) * 0.3 + 0.01
    return [x.to(dtype) for x in (q, k, v, *system)]


def first(b=3, h=2, p=3, n=3, dtype=torch.float64):
    """A state."""
    return torch.randn(b, h, p, p, n, 2, dtype=dtype)


def ragged(args, t, document=None):
    """Three rows of which two have pads: keys without these, lengths, and documents that pads repeat."""
    lengths = torch.tensor([t, t // 2, t // 3])
    valid = torch.arange(t) < lengths[:, None]
    if document is not None:
        document = torch.where(valid, document, document.gather(1, (lengths - 1).clamp(min=0)[:, None]))
        document = torch.where((lengths > 0)[:, None], document, 0)
    args[1] = torch.where(valid[..., None, None], args[1], 0)
    return valid, {"lengths": lengths} | ({} if document is None else {"document": document})


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [1, 3, 5])
@pytest.mark.parametrize("t", [1, 2, 31, 32, 33, 64, 65, 150])
def test_equals_the_recurrence(t, p, packed, dtype):
    args, state = inputs(t, p=p, dtype=dtype), first(p=p, dtype=dtype)
    document = documents(3, t) if packed else None
    y, after = toeplitz_attention(*args, state=state, document=document)
    true, states = oracle(*args, state=state, document=document)
    assert error(y, true) < LIMIT[dtype]
    assert error(after, states) < LIMIT[dtype]
    assert (y.dtype, after.dtype) == (dtype, dtype)
    fresh, nothing = toeplitz_attention(*args, document=document)
    assert nothing is None
    assert error(fresh, oracle(*args, document=document)[0]) < LIMIT[dtype]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [1, 4])
@pytest.mark.parametrize("t", [1, 2, 32, 65, 128])
def test_pads_are_passed_over(t, p, packed):
    args, state = inputs(t, p=p), first(p=p)
    valid, rows = ragged(args, t, documents(3, t) if packed else None)
    y, after = toeplitz_attention(*args, state=state, **rows)
    true, states = oracle(*args, state=state, **rows)
    assert error(torch.where(valid[..., None, None], y, 0), true) < 1e-12
    assert error(after, states) < 1e-12


@given(st.data())
def test_any_chunks_are_the_ffts(data):
    """Outputs, final state and every gradient, in float64."""
    t, p, chunk = data.draw(st.integers(2, 70)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 80))
    args, state = inputs(t, p=p), first(p=p)
    document = documents(3, t) if data.draw(st.booleans()) else None
    valid, rows = ragged(args, t, document) if data.draw(st.booleans()) else (None, {"document": document})
    rows |= {"rule": data.draw(st.sampled_from(RULES))}

    def graded(op, **more):
        leaves = [x.detach().requires_grad_() for x in (*args, state)]
        y, after = op(*leaves[:-1], state=leaves[-1], **rows, **more)
        y = y if valid is None else torch.where(valid[..., None, None], y, 0)
        return y, after, *torch.autograd.grad(y.sin().sum() + after.cos().sum(), leaves)

    for ours, true in zip(graded(toeplitz_attention, chunk=chunk), graded(by_fft), strict=True):
        assert (ours - true).abs().max() <= 1e-11 * max(1, true.abs().max())


@pytest.mark.parametrize("name", ["scored", "convolved"])
@pytest.mark.parametrize("p", [1, 5])
def test_documents_with_scores_or_entry_by_entry(name, p, monkeypatch):
    """Which is faster depends on p; both are right for all."""
    args, document = inputs(40, p=p), documents(3, 40)
    called = []
    monkeypatch.setattr(reference, "NARROW", 99 if name == "convolved" else 0)
    true = getattr(reference, name)
    monkeypatch.setattr(reference, name, lambda *args: called.append(name) or true(*args))
    y, _ = toeplitz_attention(*args, document=document, chunk=16)
    assert called == [name]
    assert error(y, oracle(*args, document=document)[0]) < 1e-12


@pytest.mark.parametrize("cuts", [[1, 39], [8, 32], [9, 30, 1], [1, 2, 2, 3, 1, 31], [39, 1]])
@pytest.mark.parametrize("p", [1, 4])
def test_split(cuts, p):
    args, document, H = inputs(40, p=p), documents(3, 40), first(p=p)
    whole, end = toeplitz_attention(*args, state=H, document=document, chunk=8)
    pieces, seen = [], torch.zeros(3, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        cut = [x[:, part] for x in args[:3]]
        y, H = toeplitz_attention(*cut, *args[3:], state=H, document=document[:, part] - seen, chunk=8)
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert error(H, end) < 1e-12


@pytest.mark.parametrize("p", [1, 4])
def test_what_comes_later_changes_no_bit(p):
    """Where FFTs would blur: products of 1e6 after those of 1, in the same chunk and in others."""
    args = inputs(100, p=p, dtype=torch.float32)
    loud = [torch.cat([x[:, :50], 1e3 * x[:, 50:]], dim=1) for x in args[:3]]
    one, two = (toeplitz_attention(*x, *args[3:])[0] for x in (args[:3], loud))
    assert torch.equal(one[:, :50], two[:, :50])
    assert not torch.equal(one[:, 50:], two[:, 50:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 40])
def test_every_number_counts(name, t):
    args = dict(zip(NAMES, inputs(t, n=4), strict=True))
    moved = args[name].roll(1, dims=1) if args[name].ndim > 1 else args[name].roll(1)
    if t == 1 and name in "qkv":
        moved = args[name].roll(1, dims=-1)
    changed, y = (toeplitz_attention(**args | x, state=first(n=4) * 0 + 1)[0] for x in ({name: moved}, {}))
    assert (changed - y).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("t", [1, 9])
@pytest.mark.parametrize("how", ["plain", "packed", "ragged", "both"])
@pytest.mark.parametrize("p", [1, 4])
def test_gradients(t, how, p):
    """Those of the state among them, and where all comes together second ones."""
    args, state = inputs(t, p=p, n=2), first(p=p, n=2)
    document = documents(3, t) if how in ("packed", "both") else None
    rows = ragged(args, t, document)[1] if how in ("ragged", "both") else {"document": document}

    def call(*args):
        y, after = toeplitz_attention(*args[:-1], state=args[-1], chunk=4, **rows)
        fresh, _ = toeplitz_attention(*args[:-1], chunk=4, **rows)
        return y.transpose(1, 2), after, fresh  # so that the gradient arrives in another layout

    leaves = [x.requires_grad_() for x in (*args, state)]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert how in ("packed", "ragged") or torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_documents_pass_no_gradient():
    args, state = [x.requires_grad_() for x in inputs(40)], first().requires_grad_()
    document = torch.full((3, 40), 1)
    document[:, 20:] = 2
    y, after = toeplitz_attention(*args, state=state, document=document, chunk=8)
    dk, dv, dstate = torch.autograd.grad(y[:, 20:].sum() + after.sum(), [*args[1:3], state])
    for gone in (dstate, dk[:, :20], dv[:, :20]):
        assert torch.equal(gone, torch.zeros_like(gone))
    assert dv[:, 20:].abs().min() > 0


@pytest.mark.parametrize("t", [1, 20])
@pytest.mark.parametrize("mapped", range(8))
def test_vmap(t, mapped):
    """One argument with another axis in front: as in a stack of models that share data or weights."""
    given, other = inputs(t, b=2), inputs(t, b=2)
    many = torch.stack([given[mapped], other[mapped]])

    def loss(*args):
        y, after = toeplitz_attention(*args, state=torch.ones(2, 2, 3, 3, 3, 2).double(), document=doc, chunk=8)
        return y.square().sum() + after.square().sum()

    doc = documents(2, t) if mapped % 2 else None
    gradient = torch.func.grad(loss, argnums=tuple(range(8)))
    dims = tuple(0 if i == mapped else None for i in range(8))
    ours = torch.func.vmap(gradient, in_dims=dims)(*given[:mapped], many, *given[mapped + 1 :])
    for i in range(2):
        alone = gradient(*given[:mapped], many[i], *given[mapped + 1 :])
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------ extremes
@pytest.mark.parametrize("t", [1, 100])
def test_a_step_of_zero_holds_the_state(t):
    args, state = inputs(t), first()
    args[-1] = torch.zeros_like(args[-1])
    _, after = toeplitz_attention(*args, state=state)
    assert torch.equal(after, state)


@pytest.mark.parametrize("dt", [0.0, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("t", [1, 100])
def test_extremes_stay_finite(t, dt):
    *args, _ = inputs(t, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (*(1e4 * x for x in args[:3]), *args[3:], torch.full((2,), dt))]
    y, after = toeplitz_attention(*leaves, state=first(dtype=torch.float32))
    grads = torch.autograd.grad(y.mean() + after.mean(), leaves)
    assert all(x.isfinite().all() for x in (y, after, *grads))
    assert error(y, by_fft(*(x.detach().double() for x in leaves), state=first() * 0)[0]) < 1e-3 or dt == 0


@pytest.mark.parametrize("p", [1, 4])
def test_long_memory(p):
    """A decay of 1e-3 a token over 16k tokens, whose powers are taken chunk by chunk in float32."""
    args = inputs(16384, b=1, h=1, p=p, n=1, dtype=torch.float32)
    args[3:] = (
        torch.tensor([[[-1.0, 0.0]]]),
        *(torch.tensor([[[1.0, 0.0]]]) for _ in "BC"),
        *torch.tensor([[0], [1e-3]]),
    )
    y, after = toeplitz_attention(*args, state=first(1, 1, p, 1, torch.float32) * 0)
    true, states = by_fft(*(x.double() for x in args), state=first(1, 1, p, 1) * 0)
    assert error(y, true) < LIMIT[torch.float32]
    assert error(after, states) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 130])
def test_bf16_keeps_a_float32_state(t):
    *qkv, L, B, C, D, dt = inputs(t, dtype=torch.float32)
    qkv = [x.bfloat16() for x in qkv]
    y, after = toeplitz_attention(*qkv, L, B, C, D, dt, state=first(dtype=torch.float32))
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    y, after = toeplitz_attention(*qkv, L, B, C, D, dt, state=first(dtype=torch.float32) * 0)
    true, states = oracle(*qkv, L, B, C, D, dt)
    assert error(y, true) < 2 * 1.66e-3
    assert error(after, states) < LIMIT[torch.float32]


@pytest.mark.parametrize("t", [1, 70])
def test_autocast_changes_nothing(t):
    state = first(dtype=torch.float32)
    assert_autocast_changes_nothing(
        lambda *args: toeplitz_attention(*args, state=state), inputs(t, dtype=torch.float32)
    )


def test_inputs_are_left_alone():
    args, state = inputs(30), first()
    before = [x.clone() for x in (*args, state)]
    for t in (1, 30):
        toeplitz_attention(*(x[:, :t] for x in args[:3]), *args[3:], state=state)
    assert all(torch.equal(*pair) for pair in zip(before, (*args, state), strict=True))


# ---------------------------------------------------------------------------------------------------- memory and FLOPs
@pytest.mark.parametrize("packed", [False, True])
def test_some_heads_at_a_time_give_the_same(packed, monkeypatch):
    args, state, document = inputs(40, h=5), first(h=5), documents(3, 40) if packed else None

    def graded():
        leaves = [x.detach().requires_grad_() for x in (*args, state)]
        y, after = toeplitz_attention(*leaves[:-1], state=leaves[-1], document=document, chunk=8)
        return y, after, *torch.autograd.grad(y.sin().sum() + after.cos().sum(), leaves)

    whole = graded()
    for of in (1, 2 * 9 * 3 * 40 * 8 * 8):
        monkeypatch.setattr(by_chunk, "BYTES_OF_CPU", of)
        for one, two in zip(graded(), whole, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [1, 8])
def test_nothing_is_as_large_as_all_scores(p, packed):
    """Forward and backward of 2,048 tokens: a chunk's scores a token at the most, which are 1/32 of all."""
    h, t = 16 // p, 2048
    args = [x.requires_grad_() for x in inputs(t, b=1, h=h, p=p, n=4, dtype=torch.float32)]
    document = documents(2, t)[:1] if packed else None
    most = largest(lambda: toeplitz_attention(*args, document=document)[0].sum().backward())
    assert most <= 4 * h * t * 64


def test_k_v_and_states_are_not_kept():
    """For the backward pass: q, k, v as given and as laid out, and what belongs to the system, but no products."""
    args = [x.requires_grad_() for x in inputs(2048, b=1, h=2, p=8, n=4, dtype=torch.float32)]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        toeplitz_attention(*args)
    assert sum(x.numel() * x.itemsize for x in kept.values()) < 5 * args[0].nbytes


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("p", "n"), [(1, 3), (2, 2), (4, 1)])
@pytest.mark.parametrize("t", [1, 2, 32, 33, 64, 130])
def test_flops_are_those_that_are_done(t, p, n, state):
    args = inputs(t, b=1, p=p, n=n)
    with FlopCounterMode(display=False) as counter:
        toeplitz_attention(*args, state=first(1, p=p, n=n) if state else None)
    assert toeplitz_attention_flops(t, 2, p, 2 * n, state)[0] == counter.get_total_flops()


def test_flops_by_hand():
    """h = 3, p = 2, N = 6, t = 5 in chunks of 4: two of them. Then one token: 3 couples of 16, D, q."""
    kernel, inner, outer = 2 * 4 * 6, 2 * 4 * 4 * 4, 2 * 4 * 6 * 4
    assert toeplitz_attention_flops(5, 3, 2, 6, False, 4)[0] == 3 * (kernel + 2 * inner + 2 * 2 * outer)
    assert toeplitz_attention_flops(5, 3, 2, 6, True, 4)[0] == 3 * (kernel + 2 * inner + 5 * outer)
    assert toeplitz_attention_flops(4, 3, 2, 6, False, 4)[0] == 3 * (kernel + inner)
    assert toeplitz_attention_flops(5, 3, 2, 6, False, 4)[1] == 3 * 4 * (2 * 4 * 3 + 2 * 3 * 8)
    assert toeplitz_attention_flops(1, 3, 2, 6, True) == (0, 3 * 4 * (16 * 3 + 2 + 3))


def test_a_backend_that_is_missing_is_refused():
    with pytest.raises(UnsupportedError, match="toeplitz_attention"):
        toeplitz_attention(*inputs(4), backend="vendor")
