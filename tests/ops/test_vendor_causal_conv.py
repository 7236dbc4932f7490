"""What stands between causal_conv1d and its package: two functions, played by shifted sums, with its seq_idx."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from hybridlm.ops import backend
from hybridlm.ops.causal_conv import causal_conv1d, vendor
from tests.ops.common import documents, error, pulled_back


def conv(x, weight, bias, before, seq_idx, silu):
    """x (b, c, t). The state counts as the first document's, as in the package."""
    k, t, wide = weight.shape[1], x.shape[2], weight.dtype
    before = x.new_zeros(*x.shape[:2], k - 1) if before is None else before
    history, y = torch.cat([before, x], dim=2).to(wide), 0 if bias is None else bias[:, None]
    if seq_idx is not None:
        seq_idx = torch.cat([seq_idx[:, :1].expand(-1, k - 1), seq_idx], dim=1)
    for j in range(k):
        tap = history[:, :, j : j + t] * weight[:, j, None]
        y = y + (
            tap if seq_idx is None else torch.where((seq_idx[:, j : j + t] == seq_idx[:, k - 1 :])[:, None], tap, 0)
        )
    return (F.silu(y) if silu else y).to(x.dtype)


def readable(x):
    """As its kernels that know documents and states take it."""
    return x.stride(1) == 1 and x.stride(2) > 1 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0


def forward(x, weight, bias, seq_idx, initial_states, final_states_out, silu_activation):
    assert readable(x)
    assert x.shape[1] % 8 == 0
    assert seq_idx is None or (seq_idx.dtype == torch.int32 and seq_idx.is_contiguous())
    assert initial_states is None or (initial_states.stride(1) == 1 and initial_states.dtype == x.dtype)
    assert bias is None or bias.dtype == weight.dtype
    assert final_states_out is None
    y = torch.empty_like(x)
    return y.copy_(conv(x, weight, bias, initial_states, seq_idx, silu_activation))


def backward(
    x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu_activation
):
    assert readable(x)
    assert readable(dout)
    assert (dfinal_states, dx) == (None, None)
    assert return_dinitial_states == (initial_states is not None)

    def run(*inputs):
        return [conv(*inputs, seq_idx, silu_activation)]

    dx, dweight, dbias, dbefore = pulled_back(run, (x, weight, bias, initial_states), [dout])
    dbefore = dbefore if dbefore is None else dbefore.transpose(1, 2).contiguous().transpose(1, 2)
    return torch.empty_like(x).copy_(dx), dweight, dbias, dbefore


FUNCTIONS = {"causal_conv1d_fwd_function": forward, "causal_conv1d_bwd_function": backward}


@pytest.fixture(autouse=True)
def played(monkeypatch):
    """causal_conv1d is installed."""
    probe = backend._probe

    def found(module, attribute):
        return (FUNCTIONS[attribute], None) if module == vendor.FUNCTIONS else probe(module, attribute)

    monkeypatch.setattr(backend, "_probe", found)


def inputs(t=9, k=4, bias=True, state=True, c=16):
    """x is a part of something wider."""
    x = torch.randn(3, t, 2 * c + 8, dtype=torch.float64)[..., 8 : 8 + c]
    weight, bias = torch.randn(c, 1, k, dtype=torch.float64), torch.randn(c, dtype=torch.float64) if bias else None
    state = torch.randn(3, c, k - 1, dtype=torch.float64) if state else None
    return [v if v is None else v.requires_grad_() for v in (x, weight, bias, state)]


def graded(run, leaves):
    y, state = run()
    torch.manual_seed(1)
    dys = torch.randn(y.transpose(1, 2).shape).to(y.dtype).transpose(1, 2), torch.randn(state.shape).to(state.dtype)
    given = [v for v in leaves if v is not None]
    return y.detach(), state.detach(), *torch.autograd.grad([y, state], given, dys, materialize_grads=True)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("rows", ["full", "packed", "ragged", "packed and ragged"])
@pytest.mark.parametrize(("t", "k"), [(9, 4), (2, 4), (3, 4), (9, 2), (9, 3)])
@pytest.mark.parametrize(("bias", "state"), [(True, True), (False, True), (True, False)])
def test_outputs_states_and_gradients(t, k, bias, state, rows, activation):
    args = inputs(t, k, bias, state)
    lengths = torch.tensor([0, t, t // 2]) if "ragged" in rows else None
    document = documents(3, t) if "packed" in rows else None
    if lengths is not None and document is not None:  # a pad repeats the last valid token's
        document = torch.minimum(document, document.gather(1, (lengths - 1).clamp(min=0)[:, None]))
    rest, named = (lengths, document, activation), {"lengths": lengths, "document": document, "activation": activation}
    ours = graded(lambda: vendor.causal_conv1d(*args, *rest), args)
    true = graded(lambda: causal_conv1d(*args[:3], state=args[3], **named, backend="reference"), args)
    for one, other in zip(ours, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_row_that_begins_a_document_does_not_see_the_state():
    args = inputs()
    document = torch.ones(3, 9, dtype=torch.int64)
    document[0] = 0
    y, last = vendor.causal_conv1d(*args, None, document, "silu")
    assert torch.equal(y[1:], vendor.causal_conv1d(*args[:3], None, None, document, "silu")[0][1:])
    (dstate,) = torch.autograd.grad(y.sum() + last.sum(), args[3])
    assert (dstate[1:] == 0).all()
    assert dstate[0].abs().min() > 0


def test_pads_are_not_read():
    x, *rest = inputs()
    lengths = torch.tensor([9, 4, 0])
    with torch.no_grad():
        y, last = vendor.causal_conv1d(x, *rest, lengths, None, "silu")
        x[1, 4:], x[2] = torch.nan, torch.nan
        again, same = vendor.causal_conv1d(x, *rest, lengths, None, "silu")
    assert torch.equal(again, y)
    assert torch.equal(same, last)
    assert torch.equal(same[2], rest[-1][2])


def test_a_part_of_a_split_is_not_copied():
    x = torch.randn(2, 5, 48).split([16, 32], dim=-1)[1]
    assert vendor._channels_last(x).data_ptr() == x.data_ptr()
    rows = torch.randn(2, 5 * 32 + 4)[:, : 5 * 32].unflatten(1, (5, 32))
    for odd in (torch.randn(2, 5, 44)[..., 12:], torch.randn(2, 5, 48)[..., 1:33], torch.randn(2, 32, 5).mT, rows):
        turned = vendor._channels_last(odd)
        assert readable(turned)
        assert turned.data_ptr() % 16 == 0
        assert torch.equal(turned, odd.transpose(1, 2))


def test_dtypes():
    """bfloat16 with weights in float32, as under autocast."""
    x, weight, bias, state = inputs()
    leaves = [x.detach().bfloat16(), weight.detach().float(), bias.detach().float(), state.detach().bfloat16()]
    leaves = [v.requires_grad_() for v in leaves]
    y, last, *grads = graded(lambda: vendor.causal_conv1d(*leaves, None, None, "silu"), leaves)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    assert [g.dtype for g in grads] == [v.dtype for v in leaves]
    assert error(y, causal_conv1d(x, weight, bias, state=state, activation="silu")[0].detach()) < 1e-2


@pytest.mark.parametrize("full", [False, True])
def test_it_is_an_op(full):
    x, weight, bias, state = inputs(bias=full, state=full)
    before = None if state is None else state.detach().mT.requires_grad_()
    args = (x, weight.detach().squeeze(1).requires_grad_(), bias, before, documents(3, 9).int() if full else None, full)
    opcheck(vendor._conv, args)


def test_it_compiles():
    args = inputs()

    def call(*args):
        return vendor.causal_conv1d(*args, None, None, "silu")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(graded(lambda: compiled(*args), args), graded(lambda: call(*args), args), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_where_last_bits_count_it_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with FakeTensorMode():
        x, weight = torch.empty(2, 64, 128, device="cuda"), torch.empty(128, 1, 4, device="cuda")
        assert "in any order" in vendor.lacks(x, weight, None)
        with torch.no_grad():
            assert vendor.lacks(x, weight, None) is None


def test_what_it_lacks():
    def of(t=64, c=128, k=4, dtype=torch.bfloat16, state=None):
        x, weight = torch.empty(2, t, c, dtype=dtype, device="cuda"), torch.empty(c, 1, k, device="cuda")
        return vendor.lacks(x, weight, None if state is None else torch.empty(2, c, k - 1, dtype=state, device="cuda"))

    x, weight, _, state = inputs()
    assert vendor.lacks(x, weight, state) == "causal_conv1d needs a GPU"
    with FakeTensorMode():
        assert of() is None
        assert of(state=torch.bfloat16) is None
        assert "dtype of the input" in of(state=torch.float32)
        assert "widths from 2 to 4" in of(k=5)
        assert "widths from 2 to 4" in of(k=1)
        assert "multiples of 8" in of(c=100)
        assert "at most 32 bits" in of(dtype=torch.float64)
        assert "more than one token" in of(t=1)
        assert "too many numbers" in of(t=1 << 20, c=1 << 10)
