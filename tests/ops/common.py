"""What the tests of several ops need: documents to cut rows into, errors, and a count of what runs."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybridlm.errors import UnsupportedError
from hybridlm.ops.agreement import agreement
from hybridlm.ops.examples import OPS, draw

CALLS = [(op, case) for op, (_, cases) in OPS.items() for case in cases]
CALL_NAMES = ["-".join(call) for call in CALLS]


def cases(*axes, kept):
    """Every combination of the axes, the last of which is t. The longest t comes by default with `kept`, and with the
    others in the deep tier."""
    found = []
    for *others, t in itertools.product(*axes):
        extra = t == max(axes[-1]) and tuple(others) != kept
        found.append(pytest.param(*others, t, marks=pytest.mark.deep if extra else ()))
    return found


def documents(b, t):
    """Lengths 1, 2, 3, ..., the first row from the state's document, the second from a new one, the last undivided."""
    bounds = torch.cumsum(torch.arange(1, t + 2), 0)
    rows = torch.bucketize(torch.arange(t), bounds, right=True).repeat(b, 1)
    rows[1] += 1
    rows[-1] = 0
    return rows


def apart(oracle, x, state, document, lengths):
    """Every document of every row alone: number 0 from the state, the others from zero; pads give zeros.

    oracle(x, state) -> y, and the state after every token.
    """
    y, after = torch.zeros_like(x), torch.zeros_like(state)
    for row, length in enumerate(lengths.tolist()):
        after[row] = state[row] if document[row, -1] == 0 else 0
        for number in document[row, :length].unique():
            at = (document[row] == number) & (torch.arange(x.shape[1]) < length)
            start = state[row : row + 1] if number == 0 else torch.zeros_like(state[:1])
            outputs, states = oracle(x[row : row + 1, at], start)
            y[row, at] = outputs[0]
            after[row] = states[0, -1]
    return y, after


def error(ours, true):
    """RMS(err) / RMS(ref)."""
    return ((ours.double() - true).norm() / true.norm()).item()


def check(y, expected, limit):
    """RMS error relative to the RMS, and no single token (dimension 1) more than ten times worse."""
    error, scale = (y.double() - expected).square(), expected.square().mean()
    assert error.mean().sqrt() <= limit * scale.sqrt()
    assert error.transpose(0, 1).flatten(1).mean(dim=1).max().sqrt() <= 10 * limit * scale.sqrt()


def assert_agrees(op, case, dtype, backend, sizes, device="cpu"):
    """Law C15 on one call. Skipped where the backend says that it cannot take it: what it says is the reason."""
    try:
        found = list(agreement(draw(op, case, sizes, device=device, dtype=dtype), backend))
    except UnsupportedError as why:
        pytest.skip(str(why))
    assert [one for one in found if not one.strain <= 1] == []


def assert_autocast_changes_nothing(op, args):
    """What an op gives under autocast is what it gives without, bit for bit."""
    plain = op(*args)
    with torch.autocast("cpu", torch.bfloat16):
        cast = op(*args)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def assert_strides_do_not_matter(op, args):
    """Inputs that lie in memory in another order give the same, and stay what they are."""
    odd = [v.transpose(0, -1).contiguous().transpose(0, -1) for v in args]
    before = [v.clone() for v in odd]
    for one, other in zip(op(*odd), op(*args), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(one, other) for one, other in zip(odd, before, strict=True))


class Calls(TorchDispatchMode):
    """Counts the tensor operations run under it, and the numbers of the largest complex tensor that one gives."""

    number, largest_complex = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_complex():
            self.largest_complex = max(self.largest_complex, out.numel())
        return out


class Arithmetic(TorchDispatchMode):
    """Counts products and sums of numbers that PyTorch executes, matrix products apart."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.count += {"mul": 1, "add": 1, "sub": 1, "addcmul": 2}.get(name, 0) * getattr(out, "numel", int)()
        self.count += args[0].numel() if name == "sum" else 0
        return out


def pulled_back(function, inputs, gradients):
    """Gradients of the inputs, None for None, taken where autograd records: inside an op's own code it does not."""

    def work():
        leaves = [x if x is None else x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        ys, dys = zip(*((y, dy) for y, dy in zip(outputs, gradients, strict=True) if dy is not None), strict=True)
        given = [x for x in leaves if x is not None]
        found = iter(torch.autograd.grad(ys, given, dys, materialize_grads=True))
        return [x if x is None else next(found) for x in leaves]

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


class Largest(TorchDispatchMode):
    """The bytes of the largest memory that a tensor made under it lies in."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.untyped_storage().nbytes())
        return out


def largest(call):
    """Bytes of the largest tensor that a call makes."""
    with Largest() as seen:
        call()
    return seen.most
