"""What a CPU runs, with a backward pass by hand, against the formulas that torch.compile and torch.func trace."""

import pytest
import torch
from torch.autograd import forward_ad

from hybridlm.ops import by_hand as module
from hybridlm.ops.causal_conv import reference as conv
from hybridlm.ops.chunks import decays, decays_by_hand
from hybridlm.ops.draw import TINY
from hybridlm.ops.examples import draw
from hybridlm.ops.linear_attention import reference as attention
from tests.ops.common import error

CASES = [
    *(("linear_attention", case) for case in ("plain", "state", "packed")),
    *(("ssd", case) for case in ("plain", "state", "packed")),
    *(("causal_conv1d", case) for case in ("plain", "state", "ragged")),
]


@pytest.mark.parametrize("sizes", [TINY, TINY._replace(t=130, h=4, g=2)], ids=["short", "three chunks"])
@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_the_formulas_that_are_traced(op, case, sizes, monkeypatch):
    example = draw(op, case, sizes, dtype=torch.float64)
    outputs, gradients = example.gradients("reference")
    for home in (conv, attention):
        monkeypatch.setattr(home, "by_hand", lambda *tensors: False)
    wanted, slopes = example.gradients("reference")
    assert all(error(ours, true) < 1e-12 for ours, true in zip(outputs, wanted, strict=True))
    assert gradients.keys() == slopes.keys()
    assert all(error(gradients[name], slopes[name]) < 1e-12 for name in slopes)


@pytest.mark.parametrize(("op", "case"), [("linear_attention", "state"), ("ssd", "state"), ("ssd", "packed")])
def test_what_is_compiled_equals_the_formulas(op, case, monkeypatch):
    sizes, calls, at_once = TINY._replace(t=130, h=4, g=2), [], attention.AtOnce.apply
    wanted, slopes = draw(op, case, sizes, dtype=torch.float64).gradients("reference")
    monkeypatch.setattr(attention, "by_hand_compiled", lambda v: True)
    monkeypatch.setattr(attention, "by_hand", lambda *tensors: False)
    monkeypatch.setattr(attention.AtOnce, "apply", lambda *tensors: calls.append(1) or at_once(*tensors))
    outputs, gradients = draw(op, case, sizes, dtype=torch.float64).gradients("reference")
    assert calls
    assert all(error(ours, true) < 1e-12 for ours, true in zip(outputs, wanted, strict=True))
    assert all(error(gradients[name], slopes[name]) < 1e-12 for name in slopes)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("k", "t"), [(1, 1), (1, 20), (4, 4), (4, 5), (4, 50), (3, 18)])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_convolution_that_is_compiled_equals_the_formulas(k, t, bias, activation, ragged, monkeypatch):
    """Also its gradients by what came before, with rows that are not a multiple of those that are summed together."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, t, 5), (5, 1, k), (2, 5, k - 1), (5,)][: 4 if bias else 3]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    lengths = torch.tensor([t, t // 2]) if ragged else None

    def called():
        x, weight, state, *rest = given
        y, last = conv.causal_conv1d(x, weight, rest[0] if rest else None, state, lengths, None, activation)
        total = (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum() + last.square().sum()
        return [y, last, *torch.autograd.grad(total, given)]

    monkeypatch.setattr(conv, "by_hand", lambda *tensors: False)
    wanted = called()
    monkeypatch.setattr(conv, "by_hand_compiled", lambda x: True)
    calls, apply = [], conv.Convolution.apply
    monkeypatch.setattr(conv.Convolution, "apply", lambda *tensors: calls.append(1) or apply(*tensors))
    found = called()
    assert calls
    for ours, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [3, 4, 40])
def test_torch_compile_traces_the_convolution_by_hand(t):
    """Fewer tokens than taps are left to the formulas."""
    x, weight = torch.randn(2, t, 5, requires_grad=True), torch.randn(5, 1, 4, requires_grad=True)

    def run(x, weight):
        return conv.causal_conv1d(x, weight, None, None, None, None, "silu")[0]

    def slopes(call):
        y = call(x, weight)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight))

    for ours, true in zip(slopes(torch.compile(run, fullgraph=True, backend="aot_eager")), slopes(run), strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-5)


def test_decays_by_hand_have_the_digits_of_every_sum():
    """Of short ones after long ones, and of what stands at the first token of a document."""
    v = -torch.rand(3, 64) * torch.tensor([1e-3, 1.0, 30.0])[:, None]
    v[:, 40] = -torch.inf
    for found, true in zip(decays_by_hand(v), decays(v.double()), strict=True):
        torch.testing.assert_close(found.double(), true, rtol=5e-6, atol=1e-37)
        assert (found[true == 0] == 0).all()


def test_torch_compile_traces_what_is_by_hand_in_float32_alone():
    x = torch.zeros(2)
    assert not module.by_hand_compiled(x)
    traced = torch.compile(lambda v: v + module.by_hand_compiled(v), fullgraph=True, backend="eager")
    assert traced(x).all()
    assert not traced(x.double()).any()


@pytest.mark.parametrize(("op", "name"), [("linear_attention", "v"), ("ssd", "dt"), ("causal_conv1d", "x")])
def test_second_derivatives_are_those_of_the_formulas(op, name, monkeypatch):
    def second(example):
        x = example.tensors[name].requires_grad_()
        (slope,) = torch.autograd.grad(example("reference")[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    ours = second(draw(op, "state", TINY, dtype=torch.float64))
    for home in (conv, attention):
        monkeypatch.setattr(home, "by_hand", lambda *tensors: False)
    assert error(ours, second(draw(op, "state", TINY, dtype=torch.float64))) < 1e-12


@pytest.mark.parametrize(("op", "case"), [*CASES, ("causal_conv1d", "token"), ("trapezoidal_ssd", "state")])
def test_derivatives_taken_forward_are_those_of_the_backward_pass(op, case):
    """u^T J v: v forward by the formulas, u backward by hand."""
    example = draw(op, case, TINY, dtype=torch.float64)
    tensors = {name: v for name, v in example.tensors.items() if v.is_floating_point()}
    ways = {name: torch.randn_like(v) for name, v in tensors.items()}
    with forward_ad.dual_level():
        example.tensors.update({name: forward_ad.make_dual(v, ways[name]) for name, v in tensors.items()})
        pushed = [forward_ad.unpack_dual(y).tangent for y in example("auto")]
    example.tensors.update({name: v.requires_grad_() for name, v in tensors.items()})
    outputs = example("auto")
    up = [torch.randn_like(y) for y in outputs]
    pulled = torch.autograd.grad(outputs, list(tensors.values()), up)
    total = sum((u * v).sum() for u, v in zip(up, pushed, strict=True))
    assert error(total, sum((g * v).sum() for g, v in zip(pulled, ways.values(), strict=True))) < 1e-12


def test_nothing_that_is_traced_is_by_hand():
    x = torch.zeros(2)
    assert module.by_hand(x)
    assert not module.by_hand(x.to("meta"))
    with forward_ad.dual_level():
        assert not module.by_hand(x)
    assert not torch.func.vmap(lambda row: row + module.by_hand(row))(x).any()
    assert not torch.compile(lambda v: v + module.by_hand(v), fullgraph=True, backend="eager")(x).any()
