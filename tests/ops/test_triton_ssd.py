"""The Triton kernels of SSD, in Triton's interpreter where there is no GPU, against the reference in float64."""

import pytest
import torch

from hybridlm.errors import UnsupportedError
from hybridlm.ops.ssd import reference, ssd
from tests.ops.common import documents, error

pytest.importorskip("triton", reason="needs Triton, whose interpreter runs where no GPU is")
from hybridlm.ops.ssd import triton as kernels
from hybridlm.ops.ssd import triton_backward, triton_states
from hybridlm.ops.ssd.triton_states import Tuning

NAMES = ("x", "dt", "A", "B", "C", "D", "state")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIGITS = 5e-7 if DEVICE == "cuda" else 1e-7  # of a product: three of tf32 on a GPU, one of float32 in the interpreter
SMALL = Tuning(chunk=16, width=16, heads=2, back_heads=2, fine=True)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of 16, so that few tokens make several."""
    cut(monkeypatch, SMALL)


def cut(monkeypatch, tuning):
    for module in (kernels, triton_backward):
        monkeypatch.setattr(module, "tuning", lambda x, B: tuning)


def inputs(t, b=2, h=4, p=8, g=2, n=16, rate=16.0):
    """float32. Steps from 0.001 to 1, some of them 0; a head of which nothing lasts from token to token."""
    x, B, C = torch.randn(b, t, h, p), torch.randn(b, t, g, n), torch.randn(b, t, g, n)
    dt, A = torch.exp(torch.empty(b, t, h).uniform_(-7, 0)), -rate * torch.rand(h)
    dt[:, 3:9], A[0] = 0, -1e3
    return [v.to(DEVICE) for v in (x, dt, A, B, C, torch.randn(h), torch.randn(b, h, p, n))]


def run(op, args, document, weights):
    """y, last state, and the gradient of each argument."""
    args = [None if v is None else v.detach().clone().requires_grad_() for v in args]
    y, last = op(*args, document, 16)
    loss = (y * weights[0].to(y)).sum() + (last * weights[1].to(last)).sum()
    given = [name for name, v in zip(NAMES, args, strict=True) if v is not None]
    gradients = torch.autograd.grad(loss, [v for v in args if v is not None])
    return {"y": y, "last": last} | dict(zip(given, gradients, strict=True))


def assert_agrees(args, document=None, of_A=1):
    """No further from the truth than plain PyTorch in float32: twice for results, four times for gradients."""
    weights = [torch.randn(args[0].shape), torch.randn(*args[0].shape[:1], *args[0].shape[2:], args[3].shape[-1])]
    document = None if document is None else document.to(DEVICE)
    ours = run(kernels.ssd, args, document, weights)
    plain = run(reference.ssd, args, document, weights)
    true = run(reference.ssd, [None if v is None else v.double() for v in args], document, weights)
    for name in true:
        limit = {"y": 2, "last": 2, "A": 4 * of_A}.get(name, 4) * max(error(plain[name], true[name]), DIGITS)
        assert error(ours[name], true[name]) < limit, name
        assert (ours[name].dtype, ours[name].shape) == (plain[name].dtype, plain[name].shape), name


USUAL = [(37, 2, False, 0.5), (37, 2, True, 16.0), (32, 1, False, 16.0), (2, 4, True, 0.5)]
RARE = [(37, 1, True, 0.5), (37, 4, False, 16.0), (32, 2, True, 0.5), (17, 1, False, 0.5), (49, 2, True, 16.0)]


@pytest.mark.parametrize(("t", "g", "packed", "rate"), USUAL + [pytest.param(*c, marks=pytest.mark.deep) for c in RARE])
def test_values_and_gradients(t, g, packed, rate):
    b = 2 if t > 2 else 8  # dA is a sum over tokens: of too few, what is left of it may be rounding
    assert_agrees(inputs(t, b, g=g, rate=rate), documents(b, t) if packed else None)


@pytest.mark.parametrize("missing", [("D",), ("D", "state")])
def test_without(missing):
    args = [None if name in missing else v for name, v in zip(NAMES, inputs(20), strict=True)]
    assert_agrees(args, documents(2, 20))


@pytest.mark.parametrize(("h", "p", "g", "n"), [(6, 5, 2, 20), pytest.param(5, 17, 1, 3, marks=pytest.mark.deep)])
def test_widths_that_fill_no_tile(h, p, g, n):
    assert_agrees(inputs(18, h=h, p=p, g=g, n=n), documents(2, 18))


CUTS = [{"fine": False}, {"fused": True, "fused_back": True}, {"chunk": 32, "heads": 4, "back_heads": 4, "width": 32}]


@pytest.mark.parametrize("changed", CUTS)
def test_cut_otherwise(changed, monkeypatch):
    cut(monkeypatch, SMALL._replace(**changed))
    assert_agrees(inputs(33, n=32), documents(2, 33), of_A=1 if SMALL._replace(**changed).fine else 50)


@pytest.mark.parametrize(
    ("packed", "missing", "fused"),
    [(True, (), False), (False, ("D", "state"), True), pytest.param(True, (), True, marks=pytest.mark.deep)],
)
def test_long_rows_in_segments(packed, missing, fused, monkeypatch):
    """Segments of 20 tokens, which fill no chunk; documents end inside segments, and between them."""
    cut(monkeypatch, SMALL._replace(segments=3, fused=fused))
    args = [None if name in missing else v for name, v in zip(NAMES, inputs(60, h=2, g=1), strict=True)]
    document = torch.tensor([[0] * 20 + [1] * 15 + [2] * 25, [3] * 10 + [4] * 50])
    assert_agrees(args, document if packed else None)


@pytest.mark.parametrize(
    ("walks", "t", "segments"),
    [(256, 4096, 1), (64, 16384, 4), (32, 2048, 2), (32, 2047, 1), (1, 2**20, 256), (64, 4104, 4), (64, 4100, 4)],
)
def test_rows_are_cut_until_they_fill_a_gpu(walks, t, segments):
    assert triton_states._segments(walks, t) == segments


def test_slices_of_one_projection():
    args = inputs(20)
    whole = torch.cat([args[0].flatten(2), args[3].flatten(2), args[4].flatten(2)], dim=-1)
    x, B, C = (
        v.unflatten(2, s) for v, s in zip(whole.split([32, 32, 32], -1), [(4, 8), (2, 16), (2, 16)], strict=True)
    )
    sliced = kernels.ssd(x, *args[1:3], B, C, *args[5:], None, 16)
    assert all(torch.equal(one, other) for one, other in zip(sliced, kernels.ssd(*args, None, 16), strict=True))
    turned = [v if v is None else v.transpose(0, -1).contiguous().transpose(0, -1) for v in args]
    assert all(torch.equal(one, other) for one, other in zip(kernels.ssd(*turned, None, 16), sliced, strict=True))


def test_documents_leave_no_trace_in_one_another():
    """Tokens 21 to 27 are the document of length 7 in the first row; all are one document in the last."""
    leaves, document = [v.requires_grad_() for v in inputs(30, b=2)], documents(3, 30)[[0, 2]].to(DEVICE)
    y, _ = kernels.ssd(*leaves, document, 16)
    of_x, of_dt, of_B, of_state = torch.autograd.grad(y[:, 21:28].sum(), [leaves[i] for i in (0, 1, 3, 6)])
    for gradient in (of_x, of_dt, of_B):
        assert (gradient[0, :21] == 0).all()
        assert (gradient[:, 28:] == 0).all()
        assert (gradient[1, :16] != 0).any()
    assert (of_state[0] == 0).all()
    assert (of_state[1, 1:] != 0).any()


def test_nothing_decays_where_every_token_begins_a_document():
    leaves = [v.requires_grad_() for v in inputs(20, b=1)]
    y, last = kernels.ssd(*leaves, torch.arange(1, 21, device=DEVICE)[None], 16)
    (of_A,) = torch.autograd.grad(y.sum() + last.sum(), leaves[2])
    assert (of_A == 0).all()


@pytest.mark.parametrize("given", [False, True])
def test_registered_as_torch_wants_it(given):
    args = [v.requires_grad_() for v in inputs(5, b=1, h=2)]
    args = args if given else [*args[:5], None, None]
    torch.library.opcheck(kernels._ssd, (*args, documents(2, 5)[:1].to(DEVICE) if given else None))


def test_says_what_it_cannot_take():
    args = inputs(5)
    x, dt, A, B, C, D, state = args
    for cast, reason in (
        ([v.double() for v in args], "bfloat16 or float32"),
        ([x, dt, A, B.bfloat16(), C, D, state], "one dtype"),
        ([x, dt, A, B.repeat(1, 1, 1, 17), C.repeat(1, 1, 1, 17), D, state.repeat(1, 1, 1, 17)], "256"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            ssd(*cast[:6], state=cast[6], backend="triton")


def test_chosen_by_name_alone_on_a_cpu():
    x, dt, A, B, C, D, state = (v.cpu() for v in inputs(20))
    for backend, op in (("auto", reference.ssd), ("triton", kernels.ssd)):
        ours, true = (
            ssd(x, dt, A, B, C, D, state=state, chunk=16, backend=backend),
            op(x, dt, A, B, C, D, state, None, 16),
        )
        assert all(torch.equal(one, other) for one, other in zip(ours, true, strict=True))
