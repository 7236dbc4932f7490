"""Tokens to experts and back: each expert's matrix meets the tokens that chose it, and no others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, resolve
from hybridlm.ops.experts import reference, vendor


def by_expert(chosen: Int[Tensor, "n k"], experts: int) -> tuple[Int[Tensor, "nk"], Int[Tensor, "e"]]:
    """Sort the n k choices by expert, those of one expert by token.

    Returns order (n k,), the choice that stands at each place (that of token order // k), and how many each expert has.
    """
    flat = chosen.flatten()
    counts = flat.new_zeros(experts).index_add(0, flat, torch.ones_like(flat))
    return flat.argsort(stable=True), counts


def grouped_linear(
    x: Float[Tensor, "n i"],
    weight: Float[Tensor, "e o i"],
    counts: Int[Tensor, "e"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "n o"]:
    """Each row of x by the matrix of its group: the first counts[0] rows by weight[0], the next counts[1] by weight[1].

    counts: how many rows each group has, 0 included; the sum is n. Work is 2 n i o, whatever the groups.
    The reference asks the device for the counts. Where they cannot be looked at (torch.compile, vmap, CUDA graphs,
    fake tensors) it gathers a matrix for each row, or, for more rows than groups, takes every matrix to every row.
    vendor: torch._grouped_mm, which asks nobody: on a GPU, in bf16.
    Source: Gale et al. 2022 (MegaBlocks, arXiv:2211.15841), section 4: no token is dropped, no group is filled up.
    """
    offers = {
        "vendor": Offer(vendor.grouped_linear, vendor.lacks(x, weight), vendor.asked(x)),
        "reference": reference.grouped_linear,
    }
    return resolve("grouped_linear", backend, offers)(x, weight, counts)
