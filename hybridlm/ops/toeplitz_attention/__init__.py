"""Attention without a softmax whose scores are weighted by the kernel of a diagonal state space: H3's heart."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.diagonal_ssm import Rule
from hybridlm.ops.diagonal_ssm.reference import System
from hybridlm.ops.lti import as_complex
from hybridlm.ops.toeplitz_attention import reference
from hybridlm.ops.toeplitz_attention.flops import toeplitz_attention_flops

__all__ = ["toeplitz_attention", "toeplitz_attention_flops"]


def toeplitz_attention(
    q: Float[Tensor, "b t h p"],
    k: Float[Tensor, "b t h p"],
    v: Float[Tensor, "b t h p"],
    Lambda: Float[Tensor, "h n 2"],
    B: Float[Tensor, "h n 2"],
    C: Float[Tensor, "h n 2"],
    D: Float[Tensor, "h"],
    dt: Float[Tensor, "h"],
    *,
    rule: Rule = "zoh",
    state: Float[Tensor, "b h p p n 2"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h p"], Float[Tensor, "b h p p n 2"] | None]:
    """H_t = Abar H_{t-1} + Bbar k_t v_t^T,  y_t = q_t (C H_t + D k_t v_t^T), head by head, A = diag(Lambda).

    Every entry of k v^T is an input to the head's one system, so that y = (T * (q k^T)) v with T_ts = C Abar^(t-s) Bbar
    for s <= t, a Toeplitz matrix. Computed in chunks, with matrix products alone.
    Lambda, B, C, D, dt and rule: of a head, as `diagonal_ssm` has them of a channel.
    state: H before the first token, one of each conjugate couple of every entry as (re, im); None: zero, and then no
    final state is computed.
    lengths: (b) valid tokens of each row, the rest being pads behind them. document: (b, t) non-decreasing, 0 continues
    the state; the final state is that of each row's last document.
    chunk: tokens of a chunk, a matter of speed alone; None: what is fastest for p.
    Returns y in v's dtype and the state after each row's last valid token, in the dtype of `state`.
    Discretisation and powers are computed in float64, the rest in promote(float32, v's dtype), autocast or not; of one
    token all in float64. t >= 1.
    Source: Fu, Dao et al. (2022), section 3 and algorithm 1; the chunks are those of Dao and Gu (2024), section 6.
    """
    run = resolve("toeplitz_attention", backend, {"reference": reference.toeplitz_attention})
    with torch.autocast(v.device.type, enabled=False):
        logs = as_complex(Lambda) * dt.double()[:, None] if rule == "zoh" else None
        return run(q, k, v, System.of(Lambda, B, C, dt, rule), logs, D, state, lengths, document, chunk)
