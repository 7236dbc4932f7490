"""The Triton kernels of the short convolution, in the interpreter where there is no GPU, against the reference."""

import pytest
import torch
from torch.library import opcheck

from hybridlm.ops.causal_conv import causal_conv1d, reference
from tests.ops.common import documents, error

pytest.importorskip("triton", reason="needs Triton, whose interpreter runs where no GPU is")
from hybridlm.ops.causal_conv import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few channels and tokens a program, so that small inputs take several."""
    monkeypatch.setattr(kernels, "CHANNELS", 16)
    monkeypatch.setattr(kernels, "SHORTEST", 4)


def inputs(t, k=4, bias=True, state=True, dtype=torch.float32):
    """x is a part of something wider."""
    c = 20
    x = torch.randn(3, t, c + 9)[..., 5 : 5 + c]
    given = [x, torch.randn(c, 1, k), torch.randn(c) if bias else None, torch.randn(3, c, k - 1) if state else None]
    return [v if v is None else v.to(DEVICE, dtype).requires_grad_() for v in given]


def graded(op, args, lengths, document, activation):
    y, last = op(*args, lengths, document, activation)
    weights = torch.Generator().manual_seed(1)
    dys = [torch.randn(v.mT.shape, generator=weights).mT.to(v.device, v.dtype) for v in (y, last)]
    given = [v for v in args if v is not None]
    return y.detach(), last.detach(), *torch.autograd.grad([y, last], given, dys, materialize_grads=True)


def check(args, lengths=None, document=None, activation="silu", limit=2e-6):
    args = [v if v is None else v.detach().requires_grad_() for v in args]
    exact = [v if v is None else v.detach().double().requires_grad_() for v in args]
    ours = graded(kernels.causal_conv1d, args, lengths, document, activation)
    true = graded(reference.causal_conv1d, exact, lengths, document, activation)
    for one, other in zip(ours, true, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= limit * max(1.0, other.norm())


@pytest.mark.parametrize("t", [1, 3, 9])
def test_lengths(t):
    """Shorter than the state, as long as a stretch, longer, and with a rest."""
    check(inputs(t))
    check(inputs(t), document=documents(3, t).to(DEVICE))


FULL, BARE = (True, False, "silu"), (False, True, None)
WIDTHS = (1, 2, 3, 4, 7)
USUAL = [(k, *(FULL if k in (2, 4) else BARE)) for k in WIDTHS]
RARE = [(k, *(BARE if k in (2, 4) else FULL)) for k in WIDTHS]


@pytest.mark.parametrize(
    ("k", "bias", "state", "activation"), USUAL + [pytest.param(*case, marks=pytest.mark.deep) for case in RARE]
)
def test_widths(k, bias, state, activation):
    document = None if state else documents(3, 6).to(DEVICE)
    check(inputs(6, k, bias, state), None, document, activation)


def test_ragged_rows():
    lengths = torch.tensor([0, 6, 4], device=DEVICE)
    check(inputs(6), lengths)


def test_half():
    """Not bfloat16: the interpreter cuts off what a GPU rounds."""
    check(inputs(6, dtype=torch.float16), limit=5e-4)


def test_documents_pass_nothing():
    args = inputs(13)
    document = torch.ones(3, 13, dtype=torch.int64, device=DEVICE)
    document[0], document[1:, 9:] = 0, 2
    y, last = kernels.causal_conv1d(*args, None, document, "silu")
    dx, dstate = torch.autograd.grad(y[:, 9:].sum() + last.sum(), [args[0], args[3]])
    assert (dstate == 0).all()
    assert (dx[1:, :9] == 0).all()
    assert (dx[0, 6:9] != 0).all()


@pytest.mark.parametrize("k", [2, 3])
def test_a_tap_that_is_not_there_touches_nothing(k):
    x, *rest = (v.detach() for v in inputs(6, k))
    x[:, 1] = torch.nan
    y, _ = kernels.causal_conv1d(x, *rest, None, None, "silu")
    assert y[:, 1 : 1 + k].isnan().all()
    assert y[:, 1 + k :].isfinite().all()
    assert y[:, :1].isfinite().all()


@pytest.mark.parametrize("full", [True, False])
def test_it_is_an_op(full):
    x, weight, bias, state = inputs(3, bias=full, state=full)
    before = None if state is None else state.detach().mT.requires_grad_()
    document = documents(3, 3).to(DEVICE, torch.int32) if full else None
    opcheck(kernels._conv, (x, weight.detach().squeeze(1).requires_grad_(), bias, before, document, full))


def test_it_is_offered():
    x, weight, bias, state = inputs(9)
    y, _ = causal_conv1d(x, weight, bias, state=state, backend="triton")
    assert error(y.detach(), causal_conv1d(x, weight, bias, state=state)[0].detach()) < 2e-6
    assert kernels.lacks(x, weight) is None
    assert "widths up to 8" in kernels.lacks(x, weight.repeat(1, 1, 3))
    assert "tokens a row" in kernels.lacks(x[:1, :1].expand(1, 2**24, 20), weight)
    assert "at most 32 bits" in kernels.lacks(x.double(), weight)
