"""What stands between ssd and mamba_ssm: its two functions, played by a loop over tokens, with its seq_idx."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from hybridlm.ops import backend
from hybridlm.ops.ssd import ssd, vendor
from tests.ops.common import documents, error, pulled_back


def scan(x, dt, A, B, C, D, state, seq_idx):
    """Document 0 goes on from the state; what stands before a change of number is forgotten."""
    (b, t, h, p), dtype = x.shape, x.dtype
    x, B, C = (v.to(dt.dtype) for v in (x, B, C))
    H = x.new_zeros(b, h, p, B.shape[-1], dtype=dt.dtype) if state is None else state
    before, ys = torch.zeros(b, dtype=torch.int32), []
    B, C = (v.repeat_interleave(h // v.shape[2], dim=2) for v in (B, C))
    for i in range(t):
        kept = torch.exp(dt[:, i] * A)
        if seq_idx is not None:
            kept, before = torch.where((seq_idx[:, i] == before)[:, None], kept, 0), seq_idx[:, i]
        H = kept[..., None, None] * H + torch.einsum("bh,bhp,bhn->bhpn", dt[:, i], x[:, i], B[:, i])
        ys.append(torch.einsum("bhpn,bhn->bhp", H, C[:, i]) + (0 if D is None else D[:, None] * x[:, i]))
    return torch.stack(ys, dim=1).to(dtype), H


def forward(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    seq_idx=None,
    cu_seqlens=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
):
    assert chunk_size == 256
    assert seq_idx is None or seq_idx.dtype == torch.int32
    y, H = scan(x, dt, A, B, C, D, initial_states, seq_idx)
    return y, None, None, None, None, H


def backward(
    dout,
    x,
    dt,
    A,
    B,
    C,
    out,
    chunk_size,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    dfinal_states=None,
    seq_idx=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    dx=None,
    ddt=None,
    dB=None,
    dC=None,
    dz=None,
    recompute_output=False,
):
    assert (chunk_size, out.shape) == (256, x.shape)
    inputs, grads = (x, dt, A, B, C, D, initial_states), (dout, dfinal_states)
    *rest, dstate = pulled_back(lambda *inputs: scan(*inputs, seq_idx), inputs, grads)
    return *rest, None, None, dstate if dstate is None else dstate.to(x.dtype)


FUNCTIONS = {"_mamba_chunk_scan_combined_fwd": forward, "_mamba_chunk_scan_combined_bwd": backward}


@pytest.fixture(autouse=True)
def played(monkeypatch):
    """mamba_ssm is installed."""
    probe = backend._probe

    def found(module, attribute):
        return (FUNCTIONS[attribute], None) if module == vendor.COMBINED else probe(module, attribute)

    monkeypatch.setattr(backend, "_probe", found)


def inputs(t=9, g=2, D=True, state=True, dtype=torch.float64):
    x, B, C = torch.randn(3, t, 4, 3), torch.randn(3, t, g, 5), torch.randn(3, t, g, 5)
    dt = torch.exp(torch.empty(3, t, 4).uniform_(-7, 0))
    given = [
        x,
        dt,
        -16 * torch.rand(4),
        B,
        C,
        torch.randn(4) if D else None,
        torch.randn(3, 4, 3, 5) if state else None,
    ]
    return [v if v is None else v.to(dtype).requires_grad_() for v in given]


def run(args, document):
    return vendor.ssd(*args, document, 64)


def true(args, document):
    return ssd(*args[:6], state=args[6], document=document, backend="reference")


def gradients(outputs, leaves, which):
    """For gradients of y, of the state or of both that are not contiguous."""
    torch.manual_seed(1)
    dys = [torch.randn(y.transpose(1, 2).shape, dtype=y.dtype).transpose(1, 2) for y in outputs]
    ys, dys = [outputs[i] for i in which], [dys[i] for i in which]
    return torch.autograd.grad(ys, leaves, dys, materialize_grads=True)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("D", "state"), [(True, True), (False, True), (True, False)])
def test_outputs_and_gradients(D, state, packed, which):
    args, document = inputs(D=D, state=state), documents(3, 9) if packed else None
    ours, expected = run(args, document), true(args, document)
    leaves = [v for v in args if v is not None]
    for one, other in zip(ours, expected, strict=True):
        assert error(one.detach(), other.detach()) < 1e-13
    for one, other in zip(*(gradients(outputs, leaves, which) for outputs in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_row_that_begins_a_document_does_not_see_the_state():
    args = inputs()
    document = torch.ones(3, 9, dtype=torch.int64)
    document[0], document[1, 4:] = 0, 2
    y, H = run(args, document)
    without = run([*args[:6], None], document)
    assert torch.equal(y[1:], without[0][1:])
    assert torch.equal(H[1:], without[1][1:])
    dx, dstate = torch.autograd.grad(y[:, 4:].sum() + H.sum(), [args[0], args[6]])
    assert (dstate[1:] == 0).all()
    assert (dx[1, :4] == 0).all()
    assert dstate[0].abs().min() > 0


def test_strides_and_dtypes():
    """Inputs as they come out of one projection, in bfloat16, with what is float32 in float32."""
    args = inputs()
    flat = torch.cat([args[0].flatten(2), args[3].flatten(2), args[4].flatten(2)], dim=-1).detach()
    x, B, C = flat.split([12, 10, 10], dim=-1)
    odd = [x.unflatten(-1, (4, 3)), args[1], args[2], B.unflatten(-1, (2, 5)), C.unflatten(-1, (2, 5)), *args[5:]]
    for one, other in zip(run(odd, None), run(args, None), strict=True):
        assert torch.equal(one, other)
    low = [v.detach().to(torch.bfloat16 if i in (0, 3, 4) else torch.float32) for i, v in enumerate(args)]
    leaves = [v.requires_grad_() for v in low]
    y, H = run(leaves, None)
    assert (y.dtype, H.dtype) == (torch.bfloat16, torch.float32)
    for leaf, grad in zip(leaves, vendor._ssd_backward(y.detach(), H.detach(), *leaves, None), strict=True):
        assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)


@pytest.mark.parametrize("full", [False, True])
def test_it_is_an_op(full):
    args = inputs(t=4, D=full, state=full)
    opcheck(vendor._ssd, (*args, documents(3, 4).int() if full else None))


def test_it_compiles():
    def call(*args):
        return vendor.ssd(*args, None, 64)

    args = inputs(t=5)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*args), call(*args), strict=True):
        assert torch.equal(one, other)
    grads = (gradients(f(*args), args, [0]) for f in (compiled, call))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_what_it_lacks():
    def of(t=64, dtype=torch.bfloat16, n=128, b=2, width=None):
        x = torch.empty(b, t, 4, 64, dtype=dtype, device="cuda")
        x = x if width is None else torch.empty_strided(x.shape, (t * width, width, 64, 1), dtype=dtype, device="cuda")
        return vendor.lacks(x, *(torch.empty(b, t, 1, n, dtype=dtype, device="cuda") for _ in range(2)))

    assert vendor.lacks(*(torch.zeros(1, 2, 1, 4) for _ in range(3))) == "mamba_ssm needs a GPU"
    with FakeTensorMode():
        assert of() is None
        assert "TF32" in of(dtype=torch.float32)
        assert "bfloat16 only" in of(dtype=torch.float16)
        assert "more than one token" in of(t=1)
        assert "at most 256" in of(n=512)
        assert "32 bits" in of(t=1 << 17, b=1, width=1 << 14)
        assert of(t=(1 << 17) - 1, b=1, width=1 << 14) is None
