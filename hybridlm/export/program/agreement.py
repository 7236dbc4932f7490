"""Programs beside the model that they are of: batches, lengths and pads that no trace has seen, then step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hybridlm.compose.model import HybridLM
from hybridlm.export.program.interface import Interface
from hybridlm.export.proof import Proof, longest_prompt, worst

LIMIT = 1e-5
"""The most that any logit may be off, in units of the RMS of all."""
STEPS, PADS = 5, 4

Run = Callable[..., list[Tensor]]


def compare(model: HybridLM, interface: Interface, programs: Mapping[str, Run]) -> Proof:
    """The worst error of a logit over the RMS of all: one row of one token, three rows, and three with pads."""
    longest = longest_prompt(model)
    whole = torch.ones(3, longest, dtype=torch.bool)
    padded = whole.clone()
    padded[0, :PADS], padded[1, -1] = False, False
    errors = {"prefill": 0.0, "step": 0.0, "padded": 0.0}
    for name, valid in (("prefill", whole[:1, :1]), ("prefill", whole), ("padded", padded)):
        read, step = _run_beside(model, interface, programs, valid)
        errors[name], errors["step"] = max(errors[name], read), max(errors["step"], step)
    return Proof(errors, longest + STEPS, LIMIT)
