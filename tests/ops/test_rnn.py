"""LSTM and GRU against a loop over rows and tokens in numpy, written from their equations."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from hybridlm.ops.backend import resolve, trace
from hybridlm.ops.rnn import best_first, gru, lstm, reference, vendor
from tests.ops.common import error

LIMIT = {torch.float64: 1e-12, torch.float32: 2e-6}
BACKENDS = ["reference", "vendor"]
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3], [1] * 12, [0] * 12, [0] * 3 + [1] * 4 + [2] * 5])
LENGTHS = torch.tensor([12, 7, 0, 5])


def sigma(x):
    return 1 / (1 + np.exp(-x))


def lstm_token(x, state, W, U, b, v):
    h, c = state
    i, f, g, o = np.split(W @ x + b + U @ h + v, 4)
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def gru_token(x, state, W, U, b, v):
    (h,) = state
    (a_r, a_z, a_n), (v_r, v_z, v_n) = np.split(W @ x + b, 3), np.split(U @ h + v, 3)
    r, z = sigma(a_r + v_r), sigma(a_z + v_z)
    return ((1 - z) * np.tanh(a_n + r * v_n) + z * h,)


CELLS = {"lstm": (lstm, lstm_token, 4, 2), "gru": (gru, gru_token, 3, 1)}


def inputs(name, b=4, t=12, d=5, h=3, dtype=torch.float64):
    """x, the four weights, and a state: a tuple of tensors."""
    _, _, gates, held = CELLS[name]
    shapes = [(b, t, d), (gates * h, d), (gates * h, h), (gates * h,), (gates * h,)]
    state = tuple(torch.randn(b, h, dtype=dtype) for _ in range(held))
    return [torch.randn(shape, dtype=dtype) for shape in shapes], state


def run(name, args, state=None, **more):
    """y, and the last state as a tuple."""
    op, _, _, held = CELLS[name]
    if state is not None:
        state = tuple(state) if held > 1 else state[0]
    y, last = op(*args, state=state, **more)
    return y, last if held > 1 else (last,)


def oracle(name, args, state, lengths=None, document=None):
    """One row and one token at a time, float64; zeros at pads."""
    x, *weights = (v.detach().double().numpy() for v in args)
    y, ends = np.zeros((*x.shape[:2], weights[1].shape[1])), [v.detach().double().numpy().copy() for v in state]
    for row in range(len(x)):
        held, current = tuple(v[row] for v in ends), 0
        for i in range(x.shape[1] if lengths is None else int(lengths[row])):
            if document is not None and int(document[row, i]) != current:
                current, held = int(document[row, i]), tuple(np.zeros_like(v) for v in held)
            held = CELLS[name][1](x[row, i], held, *weights)
            y[row, i] = held[0]
        for end, v in zip(ends, held, strict=True):
            end[row] = v
    return torch.from_numpy(y), tuple(map(torch.from_numpy, ends))


def kept(y, lengths):
    """y with zeros at pads, where it means nothing."""
    return y if lengths is None else torch.where((torch.arange(y.shape[1]) < lengths[:, None])[..., None], y, 0)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("document", [None, DOCUMENTS], ids=["plain", "packed"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("t", [1, 2, 12])
@pytest.mark.parametrize("name", CELLS)
def test_equals_the_recurrence(name, t, lengths, document, backend, dtype):
    args, state = inputs(name, t=t, dtype=dtype)
    lengths = None if lengths is None else lengths.clamp(max=t)
    document = None if document is None else document[:, :t]
    with trace() as seen:
        y, last = run(name, args, state, lengths=lengths, document=document, backend=backend)
    assert [(one.op, one.backend) for one in seen] == [(name, backend)]
    true_y, true_last = oracle(name, args, state, lengths, document)
    assert y.dtype == dtype
    assert error(kept(y, lengths), true_y) < LIMIT[dtype]
    for ours, true in zip(last, true_last, strict=True):
        assert error(ours, true) < LIMIT[dtype]
        assert ours.dtype == dtype


@pytest.mark.parametrize("name", CELLS)
def test_a_row_without_tokens_keeps_its_state_to_the_bit(name):
    args, state = inputs(name, dtype=torch.float32)
    for document in (None, torch.zeros(4, 12, dtype=torch.int64)):
        _, last = run(name, args, state, lengths=torch.tensor([0, 3, 0, 12]), document=document)
        assert all(torch.equal(new[[0, 2]], old[[0, 2]]) for new, old in zip(last, state, strict=True))
        _, last = run(name, args, state, lengths=torch.zeros(4, dtype=torch.int64), document=document)
        assert all(torch.equal(new, old) for new, old in zip(last, state, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_pads_are_not_read(name):
    args, state = inputs(name)
    wild = torch.where((torch.arange(12) < LENGTHS[:, None])[..., None], args[0], torch.nan)
    for document in (None, DOCUMENTS):
        y, last = run(name, [wild, *args[1:]], state, lengths=LENGTHS, document=document)
        other, end = run(name, args, state, lengths=LENGTHS, document=document)
        assert torch.equal(kept(y, LENGTHS), kept(other, LENGTHS))
        assert all(torch.equal(a, b) for a, b in zip(last, end, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_the_cell_is_carried_through_pads_whatever_the_weights(name):
    """Weights and inputs of 1e4 do not open a gate that is shut."""
    args, state = inputs(name, dtype=torch.float32)
    args = [1e4 * v for v in args]
    _, short = run(name, [args[0][:, :5], *args[1:]], state)
    _, padded = run(name, args, state, lengths=torch.full((4,), 5))
    for one, other in zip(padded, short, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cuts", [[1, 11], [5, 7], [1, 2, 2, 3, 1, 3]])
@pytest.mark.parametrize("name", CELLS)
def test_split(name, cuts):
    args, state = inputs(name)
    whole, end = run(name, args, state, document=DOCUMENTS)
    pieces, seen = [], torch.zeros(4, 1, dtype=torch.int64)
    for part in torch.arange(12).split(cuts):
        y, state = run(name, [args[0][:, part], *args[1:]], state, document=DOCUMENTS[:, part] - seen)
        pieces, seen = [*pieces, y], DOCUMENTS[:, part[-1:]]
    assert error(torch.cat(pieces, 1), whole) < 1e-12
    assert all(error(a, b) < 1e-12 for a, b in zip(state, end, strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("document", [None, DOCUMENTS], ids=["plain", "packed"])
@pytest.mark.parametrize("t", [1, 9])
@pytest.mark.parametrize("name", CELLS)
def test_gradients(name, t, document, lengths):
    args, state = inputs(name, t=t, d=3, h=2)
    lengths = None if lengths is None else lengths.clamp(max=t)
    document = None if document is None else document[:, :t]

    def call(*leaves):
        y, last = run(name, leaves[:5], leaves[5:], lengths=lengths, document=document)
        return kept(y, lengths).transpose(1, 2), *last  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [v.requires_grad_() for v in (*args, *state)], fast_mode=True)


@pytest.mark.parametrize("name", CELLS)
def test_float32_gradients_are_as_exact_as_the_outputs(name):
    args, state = inputs(name, t=50, dtype=torch.float32)

    def gradients(dtype):
        leaves = [v.to(dtype).requires_grad_() for v in (*args, *state)]
        y, last = run(name, leaves[:5], leaves[5:])
        return torch.autograd.grad(y.square().mean() + sum(v.square().mean() for v in last), leaves)

    for ours, true in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert error(ours, true) < 4 * LIMIT[torch.float32]


@pytest.mark.parametrize("name", CELLS)
def test_documents_pass_no_gradient(name):
    args, state = inputs(name)
    leaves = [v.requires_grad_() for v in (args[0], *state)]
    document = torch.full((4, 12), 1)
    document[:, 7:] = 2
    y, last = run(name, args, state, document=document)
    dx, *dstate = torch.autograd.grad(y[:, 7:].sum() + sum(v.sum() for v in last), leaves)
    assert not any(gradient.any() for gradient in dstate)
    assert not dx[:, :7].any()
    assert dx[:, 7:].abs().min() > 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", [1, 12])
@pytest.mark.parametrize("name", CELLS)
def test_vmap(name, t, packed):
    """One argument with another axis behind or in front: as in a stack of models that share data or weights."""
    args, state = inputs(name, t=t)
    leaves = [*args, *state]
    more = {"lengths": LENGTHS.clamp(max=t), "document": DOCUMENTS[:, :t]} if packed else {}

    def loss(*leaves):
        y, last = run(name, leaves[:5], leaves[5:], **more)
        return kept(y, more.get("lengths")).square().sum() + sum(v.square().sum() for v in last)

    every = tuple(range(len(leaves)))
    for mapped, axis in [(0, 0), (1, 0), (2, 1), (4, 0), (5, 1)]:
        other = torch.stack([leaves[mapped], 0.5 * leaves[mapped]], dim=axis)
        given = [other if i == mapped else v for i, v in enumerate(leaves)]
        dims = tuple(axis if i == mapped else None for i in every)
        ours = torch.func.vmap(torch.func.grad(loss, argnums=every), in_dims=dims)(*given)
        for i in range(2):
            alone = [other.select(axis, i) if k == mapped else v for k, v in enumerate(leaves)]
            alone = [v.clone().requires_grad_() for v in alone]
            for one, true in zip(ours, torch.autograd.grad(loss(*alone), alone), strict=True):
                torch.testing.assert_close(one[i], true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", [1, 12])
@pytest.mark.parametrize("name", CELLS)
def test_bf16_and_autocast_keep_a_float32_state(name, t):
    args, _ = inputs(name, t=t, dtype=torch.bfloat16)
    zero = tuple(torch.zeros(4, 3) for _ in range(CELLS[name][3]))
    y, last = run(name, args)
    true_y, true_last = oracle(name, args, zero)
    assert y.dtype == torch.bfloat16
    assert error(y, true_y) < 2 * 1.66e-3
    assert all(error(a, b) < LIMIT[torch.float32] for a, b in zip(last, true_last, strict=True))
    assert all(v.dtype == torch.float32 for v in last)
    args = [v.float() for v in args]
    plain = run(name, args)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(name, args)
    assert torch.equal(plain[0], cast[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], cast[1], strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_strides_do_not_matter_and_inputs_stay(name):
    args, state = inputs(name)
    odd = [v.transpose(0, -1).contiguous().transpose(0, -1) for v in args]
    before = [v.clone() for v in (*odd, *state)]
    more = {"lengths": LENGTHS, "document": DOCUMENTS}
    (y, last), (other, end) = run(name, odd, state, **more), run(name, args, state, **more)
    assert error(kept(y, LENGTHS), kept(other, LENGTHS)) < 1e-12
    assert all(error(a, b) < 1e-12 for a, b in zip(last, end, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((*odd, *state), before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pytorch_is_left_as_it_was(backend):
    def settings():
        cudnn = torch.backends.cudnn
        return torch._C._get_mkldnn_enabled(), cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before = settings()
    run("lstm", inputs("lstm")[0], backend=backend)
    assert settings() == before


@pytest.mark.parametrize("name", CELLS)
def test_a_kernel_is_told_when_it_trains(name, monkeypatch):
    """cuDNN keeps nothing for a backward pass that it is not told of."""
    seen, kernel = [], getattr(torch, name)

    def spy(*args):
        seen.append(args[6])
        return kernel(*args)

    monkeypatch.setattr(torch, name, spy)
    args, _ = inputs(name)
    run(name, [v.requires_grad_() for v in args], backend="vendor")
    with torch.no_grad():
        run(name, args, backend="vendor")
    assert seen == [True, False]
    seen.clear()
    torch.func.grad(lambda x: run(name, [x, *args[1:]], backend="vendor")[0].sum())(args[0].detach())
    assert seen == [False, True]  # once more, in the backward pass, as on a GPU


@pytest.mark.parametrize("name", CELLS)
def test_cudnn_is_given_float64_and_weights_in_one_piece(name):
    """As it takes them without a copy; what comes back, gradients too, is what the loop finds in float64."""
    (x, *weights), state = inputs(name, dtype=torch.float32)
    weights = tuple(weight.t().contiguous().t().requires_grad_() if weight.ndim == 2 else weight for weight in weights)
    seen = []

    def spy(*given):
        seen.append(given)
        return loop(*given)

    loop = partial({"lstm": reference.lstm_loop, "gru": reference.gru_loop}[name], nullcontext)
    y, last = vendor.in_double(spy, x, state, weights)
    ((_, _, wide),) = seen
    assert [weight.storage_offset() for weight in wide] == [sum(w.numel() for w in wide[:i]) for i in range(4)]
    assert wide[0].untyped_storage().nbytes() == 8 * sum(w.numel() for w in wide)
    true_y, true_last = loop(x.double(), tuple(s.double() for s in state), tuple(w.double() for w in weights))
    assert torch.equal(y, true_y.float())
    assert all(torch.equal(ours, true.float()) for ours, true in zip(last, true_last, strict=True))
    found, wanted = (torch.autograd.grad(out.double().square().sum(), weights[:2]) for out in (y, true_y))
    assert all(error(ours, true) < 1e-6 for ours, true in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("device", "first"), [("cpu", "vendor"), ("cuda", "reference")])
def test_auto_takes_no_loop_of_twice_the_memory(device, first):
    with FakeTensorMode():
        x = torch.empty(1, 2, 3, device=device)
    assert resolve("lstm", "auto", best_first(x, len, max)) == {"vendor": len, "reference": max}[first]


@pytest.mark.parametrize("name", ["lstm", "vendor's gru"])
@pytest.mark.parametrize("marks", [{}, {"lengths": LENGTHS}, {"document": DOCUMENTS}])
def test_as_one_op_for_the_compiler_it_is_the_same(name, marks):
    """Outputs, last states and every gradient, and what a custom op must keep."""
    op = torch.ops.hybridlm.recurrent
    args, state = inputs(name.split()[-1])
    leaves = [tensor.requires_grad_() for tensor in (*args, *state)]
    y, *last = op(name, leaves, marks.get("lengths"), marks.get("document"))
    expected, ended = run(name.split()[-1], args, state, **marks)
    weights = [torch.randn_like(tensor) for tensor in (y, *last)]
    found = torch.autograd.grad([y, *last], leaves, weights)
    for one, other in zip([y, *last], [expected, *ended], strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(found, torch.autograd.grad([expected, *ended], leaves, weights), strict=True):
        torch.testing.assert_close(one, other)
    torch.library.opcheck(op, (name, leaves, marks.get("lengths"), marks.get("document")))
