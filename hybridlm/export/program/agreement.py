"""Programs beside the model that they are of: batches, lengths and pads that no trace has seen, then step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hybridlm.compose.model import HybridLM
from hybridlm.errors import ExportError
from hybridlm.export.program.interface import Interface
from hybridlm.export.proof import Proof, long_prompt, worst

LIMIT = 1e-5
"""The most that any number of an answer may be off, in units of the RMS of all."""
ROUNDINGS = 3
"""Where float32 rounds more than that, a program may be so many times as far off from float64 as the model itself."""
STEPS, PADS = 5, 4

Run = Callable[[Sequence[Tensor]], list[Tensor]]


@torch.no_grad()
def compare(model: HybridLM, interface: Interface, programs: Mapping[str, Run]) -> Proof:
    """One row of one token, three long rows, and three with pads on both sides; then STEPS steps of each.

    model: in float32 and in evaluation mode. Where programs are off by more than LIMIT, it may be rounding: then both
    are measured against the model in float64. ExportError: its own answers are not finite.
    """
    tokens = long_prompt(model)
    whole = torch.ones(3, tokens, dtype=torch.bool)
    padded = whole.clone()
    padded[0, :PADS], padded[1, -1] = False, False
    cases = (("prefill", whole[:1, :1]), ("prefill", whole), ("padded", padded))
    proof = Proof(_worst(model, interface, programs, cases), tokens + STEPS, LIMIT)
    if proof.holds:
        return proof
    double = copy.deepcopy(model).double()
    limit = ROUNDINGS * _rounding(model, double, tokens)
    return proof if limit <= LIMIT else Proof(_worst(double, interface, programs, cases), proof.tokens, limit)


def _worst(
    model: HybridLM, interface: Interface, programs: Mapping[str, Run], cases: Sequence[tuple[str, Tensor]]
) -> dict[str, float]:
    """{prefill, step, padded: the worst error}; steps are those of every case."""
    errors = {"prefill": 0.0, "step": 0.0, "padded": 0.0}
    for name, valid in cases:
        read, *steps = _errors(model, interface, programs, valid)
        errors[name], errors["step"] = max(errors[name], read), max(errors["step"], *steps)
    return errors


def _errors(model: HybridLM, interface: Interface, programs: Mapping[str, Run], valid: Tensor) -> list[float]:
    """Of a prefill of these tokens from an empty state, and of each step after it."""
    (rows, tokens), drawn = valid.shape, torch.Generator().manual_seed(0)
    theirs, ours = interface.empty(rows, tokens + STEPS), model.init_state(rows, tokens + STEPS)
    inputs = _inputs(model, rows, tokens, drawn)
    answer, *theirs = programs["prefill"]([inputs, valid, *theirs])
    out = model(_as(model, inputs), ours, valid=valid)
    errors = [_error(answer, out.logits)]
    for _ in range(STEPS):
        inputs = _inputs(model, rows, 1, drawn)
        answer, *theirs = programs["step"]([inputs, *theirs])
        out = model(_as(model, inputs), out.state)
        errors.append(_error(answer, out.logits))
    return errors


def _rounding(model: HybridLM, double: HybridLM, tokens: int) -> float:
    """What float32 itself makes of the model's answers."""
    inputs = _inputs(model, 3, tokens, torch.Generator().manual_seed(0))
    return worst(model(inputs).logits, double(_as(double, inputs)).logits)


def _as(model: HybridLM, inputs: Tensor) -> Tensor:
    """Ids as they are, signals in the dtype of the model."""
    return inputs if model.spec.reads_tokens else inputs.to(model.embed.weight.dtype)


def _inputs(model: HybridLM, rows: int, tokens: int, drawn: torch.Generator) -> Tensor:
    spec = model.spec
    if spec.reads_tokens:
        return torch.randint(spec.vocab_size, (rows, tokens), generator=drawn)
    return torch.randn(rows, tokens, spec.input.channels, generator=drawn)


def _error(found: Tensor, wanted: Tensor) -> float:
    if not wanted.isfinite().all():
        raise ExportError("the model's own answers are not finite: there is nothing that a program could agree with")
    return worst(found, wanted)
