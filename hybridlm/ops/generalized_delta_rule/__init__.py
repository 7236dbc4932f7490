"""The generalised delta rule: a matrix for a state, whose transition is diagonal plus rank one at every token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.generalized_delta_rule import reference
from hybridlm.ops.generalized_delta_rule.reference import generalized_delta_rule_flops

__all__ = ["generalized_delta_rule", "generalized_delta_rule_flops"]

Keys = Float[Tensor, "b t h n"]


def generalized_delta_rule(
    q: Keys,
    k: Keys,
    v: Float[Tensor, "b t h p"],
    a: Keys,
    b: Keys,
    decay: Keys,
    *,
    state: Float[Tensor, "b h p n"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int = 32,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """S_t = S_{t-1} (diag(exp(decay_t)) + a_t b_t^T) + v_t k_t^T,  y_t = S_t q_t, head by head: (y, last S). No scale.

    Peng et al. 2025 (RWKV-7), table 1; eq. 17 has a = -kappa and b = (learning rate) * kappa. b_t writes what the state
    before it answers to a_t.
    decay: logarithms <= 0 of each channel of k, however negative. Where k, a and decay are 0 the state holds, which is
    how pads are passed over.
    state: S before the first token (zero if None). document: non-decreasing along t; 0 continues the state, and S
    starts from zero wherever the number changes. chunk: tokens of a chunk, a matter of speed alone.
    Computed in at least float32, autocast or not, which is the dtype of S; y has the dtype of v. t >= 1.
    """
    run = resolve("generalized_delta_rule", backend, {"reference": reference.generalized_delta_rule})
    with torch.autocast(v.device.type, enabled=False):
        return run(q, k, v, a, b, decay, state, document, chunk)
