"""The kernels of the selective scan, in Triton's interpreter where there is no GPU, against the float64 reference."""

import numpy as np
import pytest
import torch

from hybridlm.errors import UnsupportedError
from hybridlm.ops.backend import kernels, trace, use
from hybridlm.ops.selective_scan import reference, selective_scan
from tests.ops.common import documents, error

triton = kernels("hybridlm.ops.selective_scan.triton")
if triton is None:
    pytest.skip("Triton cannot run here", allow_module_level=True)

from hybridlm.ops.selective_scan import triton_gradients, triton_walk  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 5e-7  # of float32, forward; gradients twice that


@pytest.fixture
def short(monkeypatch):
    """Segments of two tiles, so that few tokens make many, and parts of time of one each."""
    for module, name, value in ((triton_walk, "SHORTEST", 8), (triton_gradients, "MARKED", 1)):
        monkeypatch.setattr(module, name, value)
    for module in (triton, triton_gradients):
        monkeypatch.setattr(module, "SAVED", 16)


def inputs(t, b=1, d=3, n=2, state=True, packed=False):
    """The arguments of the op's run, float32. Documents take two rows."""
    b = max(b, 2) if packed else b
    x, B, C = torch.randn(b, t, d), torch.randn(b, t, n), torch.randn(b, t, n)
    dt = torch.exp(torch.empty(b, t, d).uniform_(-7, 0))
    A = -torch.arange(1, n + 1).expand(d, n) * torch.rand(d, 1)
    args = [x, dt, A, B, C, torch.randn(d), torch.randn(b, d, n) if state else None]
    args = [None if v is None else v.to(DEVICE) for v in args]
    return args, documents(b, t).to(DEVICE) if packed else None


def everything(run, args, document, dtype=None):
    """y, the last state, and the gradients of both by every argument."""
    leaves = [None if v is None else v.detach().to(dtype or v.dtype).requires_grad_() for v in args]
    y, h = run(*leaves, document, False)
    drawn = torch.Generator().manual_seed(7)
    up = [torch.randn(v.shape, generator=drawn).to(v.device, v.dtype) for v in (y, h)]
    return [y, h, *torch.autograd.grad([y, h], [v for v in leaves if v is not None], up)]


def assert_equal(args, document, limit=LIMIT):
    ours = everything(triton.selective_scan, args, document)
    true = everything(reference.selective_scan, args, document, torch.float64)
    for i, (one, two) in enumerate(zip(ours, true, strict=True)):
        assert (one.double() - two).norm() <= limit * (1 + (i > 1)) * two.norm(), i


@pytest.mark.parametrize("t", [1, 8, 13])
def test_equals_the_reference(t):
    assert_equal(*inputs(t, b=2))


def test_without_state_and_skip():
    args, _ = inputs(9, state=False)
    args[5] = None
    assert_equal(args, None)


def test_documents():
    assert_equal(*inputs(13, packed=True))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("packed", [False, True])
def test_segments(packed):
    args, document = inputs(35, packed=packed)
    scan = triton.prepared(*args[:6], document)
    assert triton_walk.cut(scan, 8) == (5, 8)
    assert triton_walk.cut(scan, 16) == (3, 16)
    assert len(triton_gradients.parts(scan)) == 3
    assert_equal(args, document)


@pytest.mark.parametrize(("d", "n"), [(70, 3), (2, 19)])
def test_blocks_of_channels_and_states(d, n):
    assert_equal(*inputs(5, d=d, n=n))


def test_documents_pass_no_gradient():
    args, _ = inputs(12)
    document = (torch.arange(12) >= 5)[None].long().to(DEVICE)
    leaves = [v.requires_grad_() for v in args]
    y, h = triton.selective_scan(*leaves, document, False)
    dx, ddt, dstate = torch.autograd.grad(y[:, 5:].sum() + h.sum(), [leaves[0], leaves[1], leaves[6]])
    assert not dstate.any()
    assert not dx[:, :5].any()
    assert not ddt[:, :5].any()
    assert dx[:, 5:].abs().min() > 0


def test_step_zero_holds_the_state():
    args, _ = inputs(9)
    args[1] = torch.zeros_like(args[1])
    assert torch.equal(triton.selective_scan(*args, None, False)[1], args[6])


@pytest.mark.filterwarnings("ignore:overflow")
def test_extremes_stay_finite():
    args, _ = inputs(9)
    args[0], args[2] = 1e4 * args[0].sign(), -torch.ones_like(args[2])
    args[1] = torch.where(torch.rand_like(args[1]) < 0.5, 1e3, 1e-6)
    found = everything(triton.selective_scan, args, None)
    assert all(v.isfinite().all() for v in found)
    assert_equal(args, None)


def test_long_memory():
    """A = -1, dt = 1e-3: what is left after a step is 1 - 1e-3, of which exp in float32 keeps four digits."""
    t = 64
    x, step = torch.ones(1, t, 1, device=DEVICE), torch.full((1, t, 1), 1e-3, device=DEVICE)
    _, h = triton.selective_scan(x, step, -x[0, :1], x, x, None, None, None, False)
    decay = np.exp(-np.float64(np.float32(1e-3)))
    assert abs(h.item() / (np.float64(np.float32(1e-3)) * (1 - decay**t) / (1 - decay)) - 1) < 2e-6
    held = triton.selective_scan(0 * x, step, -x[0, :1], x, x, None, x[:, :1], None, False)[1]
    assert abs((1 - held.item()) / (1 - decay**t) - 1) < 1e-5


@pytest.mark.parametrize("dt", [0.05, 1.0, 6.0, 12.0])
def test_what_strong_decays_leave(dt):
    """Nothing is written: what is left of the state, and the gradients by it alone, are right relatively."""
    args, _ = inputs(5)
    args[0], args[1], args[2] = 0 * args[0], torch.full_like(args[1], dt), -torch.ones_like(args[2])
    ours = everything(triton.selective_scan, args, None)[1:]
    true = everything(reference.selective_scan, args, None, torch.float64)[1:]
    for i in (0, 3, 7):  # the last state, dA, dstate
        assert error(ours[i], true[i]) < 5e-6, i


def test_where_nothing_is_left():
    """exp(dt A) = 0 in float32 forgets all, and a NaN stays one."""
    args, _ = inputs(3)
    args[0], args[1] = 0 * args[0], torch.full_like(args[1], 1e3)
    args[2] = -torch.ones_like(args[2])
    assert not triton.selective_scan(*args, None, False)[1].any()
    args[1][0, 1, 0] = torch.nan
    assert triton.selective_scan(*args, None, False)[1][0, 0].isnan().all()


def test_strides_do_not_matter_and_inputs_stay():
    args, _ = inputs(9, d=5, n=3)
    wide = torch.randn(1, 9, 20, device=DEVICE)
    args[0], args[3], args[4] = wide[..., 3:8], wide[..., 9:12], wide[..., 13:16]
    args[1] = args[1].transpose(1, 2).contiguous().transpose(1, 2)
    args[6] = args[6].transpose(1, 2).contiguous().transpose(1, 2)
    before = [v.clone() for v in args]
    ours = everything(triton.selective_scan, args, None)
    for one, two in zip(ours, everything(triton.selective_scan, before, None), strict=True):
        assert torch.equal(one, two)
    assert all(torch.equal(v, w) for v, w in zip(args, before, strict=True))


@pytest.mark.parametrize("only", [0, 1])
def test_gradient_of_one_output(only):
    args, _ = inputs(5)

    def gradients(run, dtype):
        leaves = [v.to(dtype).requires_grad_() for v in args]
        return torch.autograd.grad(run(*leaves, None, False)[only].square().sum(), leaves, allow_unused=True)

    ours = gradients(triton.selective_scan, torch.float32)
    for one, two in zip(ours, gradients(reference.selective_scan, torch.float64), strict=True):
        assert not one.any() if two is None or not two.any() else error(one, two) < 2 * LIMIT


def test_bf16_keeps_a_float32_state():
    args, _ = inputs(9)
    args = [v.bfloat16() if i in (0, 3, 4) else v for i, v in enumerate(args)]
    ours = everything(triton.selective_scan, args, None)
    true = everything(reference.selective_scan, args, None, torch.float64)
    assert [v.dtype for v in ours[2:]] == [v.dtype for v in args]
    assert ours[1].dtype == torch.float32
    assert error(ours[1], true[1]) < LIMIT
    for one, two in zip(ours, true, strict=True):
        assert error(one, two) < 2 * 1.66e-3


def test_the_same_call_gives_the_same_bits():
    args, document = inputs(9, packed=True)
    for one, two in zip(*(everything(triton.selective_scan, args, document) for _ in range(2)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    args, document = inputs(3, packed=packed)
    args = [v.requires_grad_() for v in args]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton._selective_scan, (*args, document), test_utils=tests)
    up = [torch.randn_like(args[0]), torch.randn_like(args[6])]
    args = [v.detach() for v in args]
    up += triton._selective_scan(*args, document)[2:]
    torch.library.opcheck(triton._backward, (*up, *args, document), test_utils=tests)


def test_what_it_lacks():
    args, _ = inputs(3, state=False)
    with pytest.raises(UnsupportedError, match="Euler"):
        selective_scan(*args[:6], zoh=True, backend="triton")
    with pytest.raises(UnsupportedError, match="float32"):
        selective_scan(*(v.double() for v in args[:6]), backend="triton")
    with use("triton"), trace() as seen:
        selective_scan(*args[:6])
    assert seen[0].backend == "triton"
