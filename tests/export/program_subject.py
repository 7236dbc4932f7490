"""What the tests of programs share: random models, and a program beside its model over sizes that no trace has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hybridlm as hl
from hybridlm.export.program.interface import Interface, interface_of
from hybridlm.testing.patterns import alphabet

LIMIT = 1e-5
PIECE = 8
Programs = dict[str, Callable[..., Sequence[Tensor]]]


def stirred(pattern: str, seed: int = 0, **spec: Any) -> hl.HybridLM:
    """A model over small blocks of every mixer, with noise on every parameter: no bias is 0, no norm is 1.

    Queries and keys are small. The first token of linear attention is (q k) v over its own size, which where q and k
    are large and q k is about 0 is what float32 makes of it: 1e-5 of the logits then, whoever computes them.
    """
    blocks = {name: block for name, block in alphabet().items() if name in pattern} | spec.pop("blocks", {})
    blocks = {"blocks": blocks} if blocks else {}
    spec = {"d_model": 32, "mlp": {"type": "swiglu", "width": 48}, **blocks, **spec}
    spec |= {} if "embed" in spec else {"vocab_size": 97}
    model = hl.build(pattern=pattern, seed=seed, **spec).eval()
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=drawn).to(parameter.dtype))
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(0.25)
    return model


def opened(folder: Path) -> Programs:
    """prefill and step as torch.export reads them."""
    modules = {name: torch.export.load(folder / f"{name}.pt2").module() for name in ("prefill", "step")}
    return {name: lambda inputs, module=module: module(*inputs) for name, module in modules.items()}


def inputs_of(model: hl.HybridLM, rows: int, tokens: int, drawn: torch.Generator) -> Tensor:
    if model.spec.reads_tokens:
        return torch.randint(model.spec.vocab_size, (rows, tokens), generator=drawn)
    return torch.randn(rows, tokens, model.spec.input.channels, generator=drawn)


@torch.no_grad()
def beside(
    model: hl.HybridLM, programs: Programs, valid: Tensor, *, steps: int = 12, calls: int = 1, spare: int = 3
) -> float:
    """The worst error, over the RMS of the answers, of a prompt in so many calls of prefill and then of steps."""
    rows, tokens = valid.shape
    drawn = torch.Generator().manual_seed(0)
    interface: Interface = interface_of(model)
    capacity = tokens + steps + spare
    theirs, state, errors = interface.empty(rows, capacity), model.init_state(rows, capacity), []
    inputs = inputs_of(model, rows, tokens, drawn)
    for part, real in zip(inputs.chunk(calls, dim=1), valid.chunk(calls, dim=1), strict=True):
        answer, *theirs = programs["prefill"]([part, real, *theirs])
        out = model(part, state, valid=real)
        state = out.state
        errors.append(_error(answer, out.logits))
    for _ in range(steps):
        inputs = inputs_of(model, rows, 1, drawn)
        answer, *theirs = programs["step"]([inputs, *theirs])
        out = model(inputs, state)
        state = out.state
        errors.append(_error(answer, out.logits))
    assert torch.equal(theirs[0], state.position)
    return max(errors)


def _error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    error = ((found - wanted).abs().max() / wanted.square().mean().sqrt()).item()
    return error if error == error else float("inf")


def ragged(rows: int, tokens: int, *, left: bool) -> Tensor:
    """valid: each row has more pads than the one before, in its front or at its end, and the last one real token."""
    pads = torch.arange(rows) * (tokens // 4) // max(1, rows - 1) + torch.arange(rows)
    pads[-1] = tokens - 1
    places = torch.arange(tokens)
    return (places if left else places.flip(0)) >= pads[:, None]
