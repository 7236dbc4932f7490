"""The gated delta rule: linear attention that replaces what its key held before, computed in chunks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.gated_delta_rule import reference
from hybridlm.ops.gated_delta_rule.reference import gated_delta_rule_flops

__all__ = ["gated_delta_rule", "gated_delta_rule_flops"]


def gated_delta_rule(
    q: Float[Tensor, "b t g n"],
    k: Float[Tensor, "b t g n"],
    v: Float[Tensor, "b t h p"],
    decay: Float[Tensor, "b t h"] | None,
    beta: Float[Tensor, "b t h"],
    *,
    state: Float[Tensor, "b h p n"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """S_t = exp(decay_t) S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,  y_t = S_t q_t: (y, last S).

    Yang, Kautz, Hatamizadeh 2024 (gated), eq. 10; without a decay Yang et al. 2024 (DeltaNet), section 2. Head by head;
    head i reads group i // (h / g) of q and k, which are taken as they are: no norm, no scale. Keys of length 1 and
    beta in [0, 2] keep S bounded. decay: logarithms <= 0, however negative; None: 0. Where beta = 0 and decay = 0 the
    state holds, which is how pads are passed over.
    state: S before the first token (zero if None). document: non-decreasing along t; 0 continues the state, and S
    starts from zero wherever the number changes. chunk: tokens of a chunk, a matter of speed alone.
    Computed in at least float32, autocast or not, which is the dtype of S; y has the dtype of v. t >= 1.
    """
    run = resolve("gated_delta_rule", backend, {"reference": reference.gated_delta_rule})
    with torch.autocast(v.device.type, enabled=False):
        return run(q, k, v, decay, beta, state, document, chunk)
