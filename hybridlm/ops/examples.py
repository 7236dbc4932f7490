"""What each op is called with: inputs as a model gives them, small or large, for self-tests, law C15 and benchmarks.

    for example in examples("ssd", SMALL, dtype=torch.bfloat16): example("triton")
    draw("ssd", "packed", LARGE, device="cuda")

A case says what the call has besides its inputs. `plain`: nothing; `state`: a state before the first token, and one
after the last; `packed`: a state and documents of 1, 2, 3, ... tokens; `ragged`: a state and rows of unequal length;
`token`: one token after a state; `decoding`: the same without gradients, in the state's memory. Others are one op's
own. To add an op: a function that takes a `Draw` and its entry in OPS.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.errors import SpecError, did_you_mean
from hybridlm.ops import hippo
from hybridlm.ops.attention import attention, cached_attention, window_attention
from hybridlm.ops.causal_conv import causal_conv1d
from hybridlm.ops.cross_entropy import IGNORED, linear_cross_entropy
from hybridlm.ops.diagonal_ssm import diagonal_kernel, diagonal_ssm
from hybridlm.ops.draw import SMALL, Draw, Example, Sizes
from hybridlm.ops.experts import grouped_linear
from hybridlm.ops.gated_delta_rule import gated_delta_rule
from hybridlm.ops.generalized_delta_rule import generalized_delta_rule
from hybridlm.ops.linear import linear
from hybridlm.ops.linear_attention import linear_attention
from hybridlm.ops.long_conv import long_conv
from hybridlm.ops.norm import gated_rms_norm, group_norm, l2_norm, layer_norm, rms_norm
from hybridlm.ops.rnn import gru, lstm
from hybridlm.ops.rotary import rotary
from hybridlm.ops.s5_scan import s5_scan
from hybridlm.ops.selective_scan import selective_scan
from hybridlm.ops.shift_ssm import shift_ssm
from hybridlm.ops.ssd import ssd
from hybridlm.ops.ssm_kernel import s4_kernel, s4_scan
from hybridlm.ops.steps import steps_and_rates
from hybridlm.ops.toeplitz_attention import toeplitz_attention
from hybridlm.ops.trapezoidal_ssd import Memory, trapezoidal_ssd

Drawn = tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any]]


# ----------------------------------------------------------------------------------------------------------- attention
def _attention(d: Draw) -> Drawn:
    heads = max(1, d.h // 2) if d.case in ("grouped", "mask") else d.h
    q, k, v = d.normal(d.b, d.t, d.h, d.p), d.normal(d.b, d.t, heads, d.p), d.normal(d.b, d.t, heads, d.p)
    given = {"causal": d.case in ("plain", "grouped", "packed"), **d.document()}
    if d.case == "mask":
        seen = d.between(0, 1, d.b, d.t, d.t) < 0.5
        given["mask"] = seen | torch.eye(d.t, dtype=torch.bool, device=d.device)
    return attention, {"q": q, "k": k, "v": v}, given


def _window_attention(d: Draw) -> Drawn:
    more = d.t // 5 if d.case == "after" else 0  # keys of earlier calls
    heads = max(1, d.h // 2)
    q, k, v = d.normal(d.b, d.t, d.h, d.p), *(d.normal(d.b, d.t + more, heads, d.p) for _ in range(2))
    return window_attention, {"q": q, "k": k, "v": v}, {"size": d.t // 4, **d.document()}


def _cached_attention(d: Draw) -> Drawn:
    """One query or more a row, at positions of its own; the last row's are past the slots, as in a ring."""
    slots, heads, more = d.sizes.t, max(1, d.h // 2), max(2, d.t // 5) if d.case == "chunk" else 1
    q, k, v = d.normal(d.b, more, d.h, d.p), *(d.normal(d.b, slots, heads, d.p) for _ in range(2))
    start = torch.linspace(0, slots, d.b, device=d.device).long()
    positions = start[:, None] + torch.arange(more, device=d.device)
    return cached_attention, {"q": q, "k": k, "v": v}, {"positions": positions, "extent": slots + more}


def _rotary(d: Draw) -> Drawn:
    positions = torch.arange(d.t, device=d.device).expand(d.b, -1) + 1000
    return rotary, {"x": d.normal(d.b, d.t, d.h, d.p)}, {"positions": positions}


# --------------------------------------------------------------------------------------------------------- recurrences
def _causal_conv1d(d: Draw) -> Drawn:
    weight, bias = d.normal(d.d, 1, 4, scale=0.5), d.normal(d.d)
    tensors = {"x": d.normal(d.b, d.t, d.d), "weight": weight, "bias": bias, **d.state(d.b, d.d, 3, dtype=d.dtype)}
    return causal_conv1d, tensors, {"activation": "silu", **d.document(), **d.lengths(), **d.in_place()}


def _selective_scan(d: Draw) -> Drawn:
    n = min(d.n, 16, d.d // 8)
    tensors = {"x": d.normal(d.b, d.t, d.d), "dt": d.steps(d.b, d.t, d.d), "A": -d.between(1, 16, d.d, n)}
    tensors |= {"B": d.normal(d.b, d.t, n), "C": d.normal(d.b, d.t, n), "D": d.wide(d.d)}
    return selective_scan, tensors | d.state(d.b, d.d, n), d.document() | d.in_place()


def _ssd(d: Draw) -> Drawn:
    tensors = {"x": d.normal(d.b, d.t, d.h, d.p), "dt": d.steps(d.b, d.t, d.h), "A": -d.between(1, 16, d.h)}
    tensors |= {name: d.normal(d.b, d.t, d.g, d.n) for name in ("B", "C")} | {"D": d.wide(d.h)}
    return ssd, tensors | d.state(d.b, d.h, d.p, d.n), d.document() | d.in_place()


def _steps_and_rates(d: Draw) -> Drawn:
    return steps_and_rates, {"dt": d.normal(d.b, d.t, d.h), "bias": d.normal(d.h), "A_log": d.normal(d.h, d.n)}, {}


def _trapezoidal_ssd(d: Draw) -> Drawn:
    tensors = {"x": d.normal(d.b, d.t, d.h, d.p), "dt": d.steps(d.b, d.t, d.h), "A": -d.between(1, 16, d.b, d.t, d.h)}
    tensors |= {"trap": d.between(0, 1, d.b, d.t, d.h), "turn": d.wide(d.b, d.t, d.h, d.n // 4, scale=0.1)}
    tensors |= {name: d.normal(d.b, d.t, d.h, d.n) for name in ("B", "C")}
    for name, shape in (("ssm", (d.h, d.p, d.n)), ("key", (d.h, d.n)), ("value", (d.h, d.p))):
        tensors |= d.state(d.b, *shape, name=name)
    return _from_memory, tensors, d.document()


def _from_memory(*, ssm: Tensor | None = None, key: Any = None, value: Any = None, **rest: Any) -> tuple:
    return trapezoidal_ssd(**rest, state=None if ssm is None else Memory(ssm, key, value))


def _linear_attention(d: Draw) -> Drawn:
    heads = d.h if d.case == "channels" else d.g
    tensors = {name: d.normal(d.b, d.t, heads, d.n, scale=d.n**-0.25) for name in ("q", "k")}
    tensors |= {"v": d.normal(d.b, d.t, d.h, d.p)}
    tensors["decay"] = -d.steps(d.b, d.t, d.h, d.n) if d.case == "channels" else -d.steps(d.b, d.t, d.h)
    return linear_attention, tensors | d.state(d.b, d.h, d.p, d.n), d.document()


def _gated_delta_rule(d: Draw) -> Drawn:
    tensors = {name: d.normal(d.b, d.t, d.g, d.n) for name in ("q", "k")} | {"v": d.normal(d.b, d.t, d.h, d.p)}
    tensors["k"] = F.normalize(tensors["k"].to(d.float), dim=-1).to(d.dtype)
    tensors |= {"decay": -d.steps(d.b, d.t, d.h), "beta": d.between(0, 1, d.b, d.t, d.h)}
    return gated_delta_rule, tensors | d.state(d.b, d.h, d.p, d.n), d.document()


def _generalized_delta_rule(d: Draw) -> Drawn:
    shape = (d.b, d.t, d.h, d.n)
    key = F.normalize(d.wide(*shape), dim=-1)
    tensors = {"q": d.normal(*shape), "k": d.normal(*shape), "v": d.normal(d.b, d.t, d.h, d.p)}
    tensors |= {"a": (-key).to(d.dtype), "b": (key * d.between(0, 1, *shape)).to(d.dtype), "decay": -d.steps(*shape)}
    return generalized_delta_rule, tensors | d.state(d.b, d.h, d.p, d.n), d.document()


# ----------------------------------------------------------------------------------------- linear, the same at any time
def _diagonal(d: Draw) -> dict[str, Tensor]:
    (Lambda,) = d.of_hippo(hippo.diagonal("lin", d.n))
    return {"Lambda": Lambda, "B": d.pairs(d.d, d.n // 2), "C": d.pairs(d.d, d.n // 2), "dt": d.steps(d.d)}


def _dplr(d: Draw) -> dict[str, Tensor]:
    Lambda, P, B = d.of_hippo(*hippo.dplr("legs", d.n))
    return {"Lambda": Lambda, "P": P, "B": B, "C": d.pairs(d.d, d.n // 2), "dt": d.steps(d.d)}


def _diagonal_kernel(d: Draw) -> Drawn:
    return diagonal_kernel, _diagonal(d), {"length": d.t}


def _s4_kernel(d: Draw) -> Drawn:
    return s4_kernel, _dplr(d), {"length": d.t}


def _diagonal_ssm(d: Draw) -> Drawn:
    tensors = {"x": d.normal(d.b, d.t, d.d), **_diagonal(d), "D": d.wide(d.d), **d.state(d.b, d.d, d.n // 2, 2)}
    return diagonal_ssm, tensors, {**d.document(), **d.lengths()}


def _toeplitz_attention(d: Draw) -> Drawn:
    h, p = d.d // 4, 4  # narrow heads: a state has p^2 n numbers of each
    tensors = {name: d.normal(d.b, d.t, h, p) for name in "qkv"}
    tensors |= {name: x[:h] for name, x in _diagonal(d).items()} | {"D": d.wide(h)}
    return toeplitz_attention, tensors | d.state(d.b, h, p, p, d.n // 2, 2), {**d.document(), **d.lengths()}


def _s4_scan(d: Draw) -> Drawn:
    tensors = {"x": d.normal(d.b, d.t, d.d), **_dplr(d), "D": d.wide(d.d), **d.state(d.b, d.d, d.n // 2, 2)}
    return s4_scan, tensors, {**d.document(), **d.lengths()}


def _s5_scan(d: Draw) -> Drawn:
    n = d.n // 2
    Lambda = torch.stack([-d.between(0.1, 1, n), d.between(0, 3.14 * n, n)], dim=-1)
    tensors = {"x": d.normal(d.b, d.t, d.d), "Lambda": Lambda, "B": d.pairs(n, d.d, scale=d.d**-0.5)}
    tensors |= {"C": d.pairs(d.d, n), "D": d.wide(d.d), "dt": d.steps(n), **d.state(d.b, n, 2)}
    return s5_scan, tensors, {**d.document(), **d.lengths()}


def _shift_ssm(d: Draw) -> Drawn:
    tensors = {"x": d.normal(d.b, d.t, d.d), "C": d.wide(d.d, d.n), "D": d.wide(d.d), **d.state(d.b, d.d, d.n - 1)}
    return shift_ssm, tensors, {**d.document(), **d.lengths()}


def _long_conv(d: Draw) -> Drawn:
    fade = torch.linspace(0, -8, d.t, device=d.device).exp()
    tensors = {"u": d.normal(d.b, d.t, d.d), "k": d.wide(d.d, d.t) * fade, "D": d.wide(d.d)}
    return long_conv, tensors, d.document()


# ------------------------------------------------------------------------------------------------------------ the rest
def _rnn(d: Draw, gates: int) -> dict[str, Tensor]:
    width = {"scale": d.d**-0.5}
    weights = {"weight_ih": d.normal(gates * d.d, d.d, **width), "weight_hh": d.normal(gates * d.d, d.d, **width)}
    biases = {name: d.normal(gates * d.d, **width) for name in ("bias_ih", "bias_hh")}
    return {"x": d.normal(d.b, d.t, d.d), **weights, **biases}


def _gru(d: Draw) -> Drawn:
    return gru, _rnn(d, 3) | d.state(d.b, d.d), {**d.document(), **d.lengths()}


def _lstm(d: Draw) -> Drawn:
    tensors = _rnn(d, 4) | d.state(d.b, d.d) | d.state(d.b, d.d, name="cell")
    return _from_cell, tensors, {**d.document(), **d.lengths()}


def _from_cell(*, state: Tensor | None = None, cell: Tensor | None = None, **rest: Any) -> tuple:
    return lstm(**rest, state=None if state is None else (state, cell))


def _norm(op: Callable, gate: bool = False, bias: bool = False, **options: Any) -> Callable[[Draw], Drawn]:
    def drawn(d: Draw) -> Drawn:
        tensors = {"y": d.normal(d.b, d.t, d.d), "z": d.normal(d.b, d.t, d.d)} if gate else {}
        tensors = tensors or {"x": d.normal(d.b, d.t, d.d)}
        if op is not l2_norm:
            tensors |= {"weight": d.normal(d.d)} | ({"bias": d.normal(d.d)} if bias else {})
        return op, tensors, {"eps": 1e-5, **options}

    return drawn


def _linear_cross_entropy(d: Draw) -> Drawn:
    rows, chunk = d.b * d.t, min(4096, d.b * d.t // 3)
    targets = (d.between(0, d.v, rows)).long().clamp(max=d.v - 1)
    targets[:: max(2, rows // 7)] = IGNORED
    tensors = {"x": d.normal(rows, d.d), "weight": d.normal(d.v, d.d, scale=d.d**-0.5)}
    return _loss_of, tensors, {"targets": targets, "chunk": chunk, "layer": d.case == "layer"}


def _loss_of(*, x: Tensor, weight: Tensor, targets: Tensor, chunk: int, layer: bool, backend: str) -> Tensor:
    head = (lambda part: F.linear(part, weight)) if layer else weight
    return linear_cross_entropy(x, head, targets, chunk, backend)


def _linear(d: Draw) -> Drawn:
    """One row of activations for each of b, as in decoding, or all tokens of them."""
    shape = (d.b, d.d) if d.case == "decoding" else (d.b, d.t, d.d)
    return linear, {"x": d.normal(*shape), "weight": d.normal(2 * d.d, d.d, scale=d.d**-0.5)}, {}


def _grouped_linear(d: Draw) -> Drawn:
    rows, experts = d.b * d.t, 8
    counts = torch.full((experts,), rows // experts, device=d.device)
    counts[0], counts[-1] = 0, rows - int(counts[1:-1].sum())
    tensors = {"x": d.normal(rows, d.d), "weight": d.normal(experts, d.d, d.d, scale=d.d**-0.5)}
    return grouped_linear, tensors, {"counts": counts}


RECURRENT = ("plain", "state", "packed", "token")
WITH_LENGTHS = ("plain", "state", "packed", "ragged", "token")

OPS: dict[str, tuple[Callable[[Draw], Drawn], tuple[str, ...]]] = {
    "attention": (_attention, ("plain", "grouped", "mask", "packed", "all")),
    "window_attention": (_window_attention, ("plain", "after", "packed")),
    "cached_attention": (_cached_attention, ("one", "chunk", "decoding")),
    "rotary": (_rotary, ("plain",)),
    "causal_conv1d": (_causal_conv1d, (*WITH_LENGTHS, "decoding")),
    "selective_scan": (_selective_scan, (*RECURRENT, "decoding")),
    "ssd": (_ssd, (*RECURRENT, "decoding")),
    "steps_and_rates": (_steps_and_rates, ("plain", "decoding")),
    "trapezoidal_ssd": (_trapezoidal_ssd, RECURRENT),
    "linear_attention": (_linear_attention, (*RECURRENT, "channels")),
    "gated_delta_rule": (_gated_delta_rule, RECURRENT),
    "generalized_delta_rule": (_generalized_delta_rule, RECURRENT),
    "diagonal_kernel": (_diagonal_kernel, ("plain",)),
    "diagonal_ssm": (_diagonal_ssm, WITH_LENGTHS),
    "s4_kernel": (_s4_kernel, ("plain",)),
    "s4_scan": (_s4_scan, WITH_LENGTHS),
    "s5_scan": (_s5_scan, WITH_LENGTHS),
    "toeplitz_attention": (_toeplitz_attention, WITH_LENGTHS),
    "shift_ssm": (_shift_ssm, WITH_LENGTHS),
    "long_conv": (_long_conv, ("plain", "packed")),
    "lstm": (_lstm, WITH_LENGTHS),
    "gru": (_gru, WITH_LENGTHS),
    "rms_norm": (_norm(rms_norm), ("plain",)),
    "layer_norm": (_norm(layer_norm, bias=True), ("plain",)),
    "gated_rms_norm": (_norm(gated_rms_norm, gate=True, groups=2), ("plain",)),
    "group_norm": (_norm(group_norm, bias=True, groups=4), ("plain",)),
    "l2_norm": (_norm(l2_norm), ("plain",)),
    "linear_cross_entropy": (_linear_cross_entropy, ("plain", "layer")),
    "linear": (_linear, ("plain", "decoding")),
    "grouped_linear": (_grouped_linear, ("plain",)),
}


def draw(
    op: str,
    case: str = "plain",
    sizes: Sizes = SMALL,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Example:
    """One case of an op; the same seed gives the same numbers. SpecError: there is no such op or case."""
    if op not in OPS:
        raise SpecError(f"unknown op {op!r}; one of {', '.join(OPS)}.{did_you_mean(op, OPS)}")
    function, cases = OPS[op]
    if case not in cases:
        raise SpecError(f"{op} has no case {case!r}; it has {', '.join(cases)}.{did_you_mean(case, cases)}")
    return Example(op, case, *function(Draw(case, sizes, device, dtype, seed)))


def examples(op: str, sizes: Sizes = SMALL, **where: Any) -> Iterator[Example]:
    """Every case of an op, drawn when its turn comes. where: device, dtype and seed, as of `draw`."""
    for case in OPS[op][1]:
        yield draw(op, case, sizes, **where)
