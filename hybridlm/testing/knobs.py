"""Parameters with a meaning that the kit knows by name: the decay A and the step size dt of a state space layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

STEPS = ("dt_bias", "dt_proj.bias", "dt.bias")
"""Biases under a softplus that gives dt."""

LOG_STEPS = ("log_dt",)
"""Logarithms of dt."""

LOG_RATES = ("A_log", "log_A_real", "log_A")
"""Logarithms of -A, or of its real part."""

RATES = ("A_real",)
"""A itself, or its real part."""

UNDECAYED = (*STEPS, *LOG_STEPS, *LOG_RATES, *RATES, "A_imag", "D")
"""Never under weight decay."""


def called(name: str, ends: tuple[str, ...]) -> bool:
    """Whether a parameter's path ends with one of these names."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def step_sizes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """dt at zero input, by the name of the parameter that gives it."""
    for name, parameter in module.named_parameters():
        if called(name, STEPS):
            yield name, nn.functional.softplus(parameter.detach().double())
        if called(name, LOG_STEPS):
            yield name, parameter.detach().double().exp()


@torch.no_grad()
def set_step(module: nn.Module, dt: float) -> bool:
    """Make dt at zero input this large; False if the module has no step size."""
    found = False
    for name, parameter in module.named_parameters():
        if called(name, STEPS):
            parameter.fill_(dt if dt > 30 else math.log(math.expm1(dt)) if dt > 0 else -1e4)
            found = True
        if called(name, LOG_STEPS):
            parameter.fill_(math.log(dt) if dt > 0 else -80.0)
            found = True
    return found


@torch.no_grad()
def set_rate(module: nn.Module, rate: float) -> bool:
    """Make every A equal to -rate; False if the module has none."""
    found = False
    for name, parameter in module.named_parameters():
        if called(name, LOG_RATES):
            parameter.fill_(math.log(rate))
            found = True
        if called(name, RATES):
            parameter.fill_(-rate)
            found = True
    return found


def long_memory(module: nn.Module) -> bool:
    """A = -1 and dt = 1e-3: a memory of a thousand tokens. False if the module has no such knobs."""
    return set_rate(module, 1.0) and set_step(module, 1e-3)
