"""The short convolution against loops over rows, documents, tokens and taps in numpy."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridlm.ops.causal_conv import causal_conv1d, reference
from hybridlm.ops.causal_conv.around import around
from tests.ops.common import largest

LENGTHS = [1, 2, 3, 4, 5, 63, 64, 65, 130]


def oracle(x, weight, bias, state, lengths, document):
    """One row, one token, one tap at a time. The past is a list that a new document empties."""
    x, weight, bias, state = (v.detach().double().numpy() for v in (x, weight, bias, state))
    b, t, c = x.shape
    k = weight.shape[-1]
    y, last = np.zeros_like(x), np.zeros_like(state)
    for row in range(b):
        past, current = [state[row, :, j] for j in range(k - 1)], 0
        for i in range(t if lengths is None else int(lengths[row])):
            if document is not None and int(document[row, i]) != current:
                current, past = int(document[row, i]), [np.zeros(c)] * (k - 1)
            past = [*past, x[row, i]]
            total = bias + sum(weight[:, 0, j] * past[j - k] for j in range(k))
            y[row, i] = total / (1 + np.exp(-total))
            past = past[1:]
        last[row] = np.stack(past, 1) if past else last[row]
    return torch.from_numpy(y), torch.from_numpy(last)


def inputs(t, b=4, c=3, k=4, dtype=torch.float64):
    return [v.to(dtype) for v in (torch.randn(b, t, c), torch.randn(c, 1, k), torch.randn(c), torch.randn(b, c, k - 1))]


def documents(b, t, lengths):
    """Lengths 1, 2, 3, ...; one row begins with a new document; pads repeat the number of the last valid token."""
    bounds = torch.cumsum(torch.arange(1, t + 2), 0)
    rows = torch.bucketize(torch.arange(t), bounds, right=True).repeat(b, 1)
    rows[1] += 1
    if lengths is None:
        return rows
    last = torch.where(lengths > 0, rows.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0], 0)
    return torch.where(torch.arange(t) < lengths[:, None], rows, last[:, None])


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("t", LENGTHS)
def test_equals_the_loop(t, ragged, packed, k):
    x, weight, bias, state = inputs(t, k=k)
    lengths = torch.tensor([t, t // 2, 0, min(1, t)]) if ragged else None
    document = documents(4, t, lengths) if packed else None
    if ragged:
        x = torch.where((torch.arange(t) < lengths[:, None])[..., None], x, torch.nan)  # what follows is not read
    y, last = causal_conv1d(x, weight, bias, state=state, lengths=lengths, document=document, activation="silu")
    true_y, true_last = oracle(x, weight, bias, state, lengths, document)
    assert y.isfinite().all()
    if ragged:
        y = torch.where((torch.arange(t) < lengths[:, None])[..., None], y, 0)
    torch.testing.assert_close(y, true_y, rtol=1e-12, atol=1e-12)
    assert torch.equal(last, true_last)


def test_equals_torch():
    x, weight, bias, _ = inputs(20)
    y, _ = causal_conv1d(x, weight, bias)
    true = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(y, true, rtol=1e-12, atol=1e-12)


def test_without_a_bias():
    x, weight, bias, _ = inputs(20)
    assert torch.equal(causal_conv1d(x, weight, None)[0], causal_conv1d(x, weight, bias * 0)[0])


@pytest.mark.parametrize("cuts", [[1, 39], [2, 38], [3, 37], [1, 2, 2, 3, 1, 31]])
def test_split(cuts):
    x, weight, bias, state = inputs(40)
    document = documents(4, 40, None)
    whole, end = causal_conv1d(x, weight, bias, state=state, document=document, activation="silu")
    pieces, seen = [], torch.zeros(4, 1, dtype=torch.int64)
    for part in torch.arange(40).split(cuts):
        y, state = causal_conv1d(
            x[:, part], weight, bias, state=state, document=document[:, part] - seen, activation="silu"
        )
        pieces, seen = [*pieces, y], document[:, part[-1:]]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, end)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", [1, 9])
def test_gradients(t, packed, ragged):
    lengths = torch.tensor([t, t // 2, 0, 1]) if ragged else None
    document = documents(4, t, lengths) if packed else None

    def call(x, weight, bias, state):
        y, last = causal_conv1d(x, weight, bias, state=state, lengths=lengths, document=document, activation="silu")
        return y.transpose(1, 2), last  # so that the gradient arrives in another layout

    torch.autograd.gradcheck(call, [v.requires_grad_() for v in inputs(t)], fast_mode=True)


@pytest.mark.parametrize("mapped", range(4))
def test_vmap(mapped):
    given = inputs(9)
    given[mapped] = torch.stack([given[mapped], given[mapped] + 1])
    document = documents(4, 9, None)

    def call(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, state=state, document=document, activation="silu")

    ours = torch.func.vmap(call, in_dims=tuple(0 if i == mapped else None for i in range(4)))(*given)
    for i in range(2):
        alone = call(*(v[i] if k == mapped else v for k, v in enumerate(given)))
        for one, true in zip(ours, alone, strict=True):
            torch.testing.assert_close(one if one.ndim == true.ndim else one[i], true, rtol=1e-12, atol=1e-12)


def test_dtypes_and_inputs_stay():
    x, weight, bias, state = inputs(9, dtype=torch.bfloat16)
    before = [v.clone() for v in (x, state)]
    y, last = causal_conv1d(x, weight, bias, state=state, activation="silu")
    wide, _ = causal_conv1d(x.double(), weight.double(), bias.double(), state=state.double(), activation="silu")
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(
        y, causal_conv1d(*(v.float() for v in (x, weight, bias)), state=state.float(), activation="silu")[0].bfloat16()
    )
    assert (y.double() - wide).norm() / wide.norm() < 2 * 1.66e-3
    assert torch.equal(x, before[0])
    assert torch.equal(state, before[1])


def test_the_state_shares_no_memory_with_the_input():
    x, weight, bias, state = inputs(9)
    _, last = causal_conv1d(x, weight, bias, state=state)
    kept = last.clone()
    x.fill_(7)
    state.fill_(7)
    assert torch.equal(last, kept)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("t", [1, 2, 9])
def test_what_stands_around_a_kernel_gives_the_last_inputs_bit_for_bit(t, held, packed):
    """Of rows that are shorter than the state, empty and full; with their gradients, and NaN at the pads."""
    x, weight, state = torch.randn(4, t, 5), torch.randn(5, 1, 4), torch.randn(4, 5, 3)
    lengths = torch.tensor([t, t // 2, 0, min(2, t)])
    x = torch.where((torch.arange(t) < lengths[:, None])[..., None], x, torch.nan).requires_grad_()
    state = state.requires_grad_() if held else None
    document, given = documents(4, t, lengths) if packed else None, [x, state] if held else [x]
    up, found = torch.randn(4, 5, 3), []
    for run in (reference.causal_conv1d, partial(around, lambda x, *rest: x)):
        _, last = run(x, weight, None, state, lengths, document, None)
        found.append([last, *torch.autograd.grad(last, given, up)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_kernel_s_ragged_input_is_copied_once():
    x, weight = torch.randn(2, 64, 8), torch.randn(8, 1, 4)
    given = (x, weight, None, torch.randn(2, 8, 3), torch.tensor([64, 9]), None, None)
    assert largest(lambda: around(lambda x, *rest: x, *given)) == x.nbytes
