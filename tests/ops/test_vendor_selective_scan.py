"""What stands between the selective scan and mamba_ssm: its two functions, played by a loop over tokens."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from hybridlm.ops import backend
from hybridlm.ops.selective_scan import selective_scan, vendor
from tests.ops.common import error, pulled_back

CHUNK = 2048


def scan(u, delta, A, B, C, D):
    """u, delta (b, d, t), B, C (b, 1, n, t). The state after every token too: (b, d, n, t)."""
    h, hs = torch.zeros(*u.shape[:2], A.shape[1], dtype=A.dtype), []
    for i in range(u.shape[2]):
        h = torch.exp(delta[:, :, i, None] * A) * h + (delta * u)[:, :, i, None] * B[:, :, :, i]
        hs.append(h)
    hs = torch.stack(hs, dim=-1)
    return (hs * C).sum(2) + (0 if D is None else D[:, None] * u), hs


def forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    assert (z, delta_bias, delta_softplus) == (None, None, False)
    assert all(v.dtype == A.dtype and v.stride(-1) == 1 for v in (u, delta, A, B, C))
    assert B.shape == C.shape == (u.shape[0], 1, A.shape[1], u.shape[2])
    y, hs = scan(u, delta, A, B, C, D)
    ends = [*range(CHUNK - 1, u.shape[2] - 1, CHUNK), u.shape[2] - 1]
    states = torch.zeros(*u.shape[:2], len(ends), 2 * A.shape[1], dtype=A.dtype)
    states[..., 1::2] = hs[..., ends].transpose(2, 3)
    return y, states


def backward(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z):
    assert (z, delta_bias, out, dz, delta_softplus, recompute_out_z) == (None, None, None, None, False, False)
    assert x.shape == (*u.shape[:2], -(-u.shape[2] // CHUNK), 2 * A.shape[1])
    assert torch.equal(x, forward(u, delta, A, B, C, D, None, None, False)[1])
    du, ddelta, dA, dB, dC, dD = pulled_back(lambda *v: scan(*v)[:1], (u, delta, A, B, C, D), [dout])
    return du, ddelta, dA, dB, dC, dD, None


@pytest.fixture(autouse=True)
def played(monkeypatch):
    """mamba_ssm is installed."""
    probe, functions = backend._probe, {"fwd": forward, "bwd": backward}

    def found(module, attribute):
        return (functions[attribute], None) if module == vendor.MODULE else probe(module, attribute)

    monkeypatch.setattr(backend, "_probe", found)


def inputs(t=9, D=True, dtype=torch.float64):
    x, B, C = torch.randn(2, t, 6), torch.randn(2, t, 3), torch.randn(2, t, 3)
    dt = torch.exp(torch.empty(2, t, 6).uniform_(-7, 0))
    given = [x, dt, -16 * torch.rand(6, 3), B, C, torch.randn(6) if D else None]
    return [v if v is None else v.to(dtype).requires_grad_() for v in given]


def run(args):
    return vendor.selective_scan(*args, None, None, False)


def gradients(outputs, args, which):
    torch.manual_seed(1)
    dys = [torch.randn(v.transpose(1, 2).shape).to(v.dtype).transpose(1, 2) for v in outputs]
    leaves = [v for v in args if v is not None]
    return torch.autograd.grad([outputs[i] for i in which], leaves, [dys[i] for i in which], materialize_grads=True)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
@pytest.mark.parametrize("D", [True, False])
@pytest.mark.parametrize("t", [2, 9])
def test_outputs_and_gradients(t, D, which):
    args = inputs(t, D)
    ours, true = run(args), selective_scan(*args, backend="reference")
    for one, other in zip(ours, true, strict=True):
        assert error(one.detach(), other.detach()) < 1e-13
    for one, other in zip(*(gradients(outputs, args, which) for outputs in (ours, true)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_last_state_past_a_chunk():
    """The tokens that read the state come after several of the package's chunks, and make one more."""
    args = inputs(CHUNK - 1)
    args = [
        v.detach()[:, :, :2] if i < 2 else v.detach()[:2] if i in (2, 5) else v.detach() for i, v in enumerate(args)
    ]
    args = [v[:1].requires_grad_() if v.ndim == 3 else v.requires_grad_() for v in args]
    ours, true = run(args), selective_scan(*args, backend="reference")
    assert error(ours[1].detach(), true[1].detach()) < 1e-12
    for one, other in zip(*(gradients(outputs, args, [1]) for outputs in (ours, true)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_bf16_computes_in_float32():
    """x, B and C in bfloat16; dt, A and D as they are. Inputs that lie in memory the other way round are not copied."""
    args = inputs()
    low = [v.detach().to(torch.bfloat16 if i in (0, 3, 4) else torch.float32) for i, v in enumerate(args)]
    low = [v.requires_grad_() for v in low]
    y, h = run(low)
    true = selective_scan(*(v.double() for v in low))
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    assert error(y.detach(), true[0].detach()) < 2 * 1.66e-3
    assert error(h.detach(), true[1].detach()) < 2e-6
    for leaf, grad in zip(low, gradients((y, h), low, [0, 1]), strict=True):
        assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)
    turned = torch.randn(2, 6, 9).mT
    assert vendor._turned(turned, torch.float32).data_ptr() == turned.data_ptr()


@pytest.mark.parametrize("D", [True, False])
def test_it_is_an_op(D):
    opcheck(vendor._scan, inputs(4, D))


def test_it_compiles():
    args = inputs(5)

    def call(*args):
        return vendor.selective_scan(*args, None, None, False)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*args), call(*args), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(gradients(f(*args), args, [0]) for f in (compiled, call)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_where_last_bits_count_it_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with FakeTensorMode():
        x, A = torch.empty(2, 64, 128, device="cuda"), torch.empty(128, 16, device="cuda")
        assert "in any order" in vendor.lacks(x, A, None, None, False)
        with torch.no_grad():
            assert vendor.lacks(x, A, None, None, False) is None


def test_what_it_lacks():
    def of(t=64, n=16, dtype=torch.bfloat16, state=None, document=None, zoh=False):
        x, A = torch.empty(2, t, 128, dtype=dtype, device="cuda"), torch.empty(128, n, device="cuda")
        return vendor.lacks(x, A, state, document, zoh)

    assert vendor.lacks(*inputs()[:2], None, None, False) == "mamba_ssm needs a GPU"
    with FakeTensorMode():
        assert of() is None
        assert of(dtype=torch.float32) is None
        assert "no documents" in of(document=torch.zeros(2, 64))
        assert "starts from zero" in of(state=torch.zeros(2, 128, 16))
        assert "Euler's rule" in of(zoh=True)
        assert "at most 256 states" in of(n=300)
        assert "at most 32 bits" in of(dtype=torch.float64)
        assert "more than one token" in of(t=1)
        assert "too many numbers" in of(t=1 << 23)
