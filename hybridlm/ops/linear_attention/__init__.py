"""Linear attention with a decay: a matrix for a state, computed as attention inside chunks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.linear_attention import reference
from hybridlm.ops.linear_attention.reference import linear_attention_flops

__all__ = ["linear_attention", "linear_attention_flops"]


def linear_attention(
    q: Float[Tensor, "b t g n"],
    k: Float[Tensor, "b t g n"],
    v: Float[Tensor, "b t h p"],
    decay: Float[Tensor, "b t h"] | Float[Tensor, "b t g n"] | None,
    *,
    state: Float[Tensor, "b h p n"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p n"]]:
    """S_t = exp(decay_t) S_{t-1} + v_t k_t^T,  y_t = S_t q_t, head by head: (y, last S). No scale, no normaliser.

    Katharopoulos et al. 2020, eq. 18 to 20 without the normaliser; with a decay Sun et al. 2023 (RetNet), eq. 6, and
    Yang et al. 2023 (GLA), eq. 3. Head i reads group i // (h / g) of q and k.
    decay: logarithms <= 0, however negative: (b, t, h), one a head, or (b, t, g, n), one a channel of k; None: 0.
    Where k = 0 and decay = 0 the state holds, which is how pads are passed over.
    state: S before the first token (zero if None). document: non-decreasing along t; 0 continues the state, and S
    starts from zero wherever the number changes. chunk: tokens of a chunk, a matter of speed alone.
    Computed in at least float32, autocast or not, which is the dtype of S; y has the dtype of v. t >= 1.
    """
    run = resolve("linear_attention", backend, {"reference": reference.linear_attention})
    with torch.autocast(v.device.type, enabled=False):
        return run(q, k, v, decay, state, document, chunk)
