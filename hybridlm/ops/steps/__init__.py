"""How long a step a recurrence takes at a token, and how fast it forgets: what a selective state space is driven by."""

from jaxtyping import Float
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve
from hybridlm.ops.decoding import kernel_lacks, small_asked
from hybridlm.ops.steps import reference
from hybridlm.ops.steps.reference import softplus

__all__ = ["softplus", "steps_and_rates"]


def steps_and_rates(
    dt: Float[Tensor, "b t h"],
    bias: Float[Tensor, "h"] | None,
    A_log: Float[Tensor, "h *n"],
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "h *n"]]:
    """(softplus(dt + bias), -exp(A_log)), in at least float32. Gu and Dao 2023, algorithm 2 and section 3.6.

    A_log may have a column for each of N states. bias: None is 0.
    """
    k = kernels("hybridlm.ops.steps.triton")
    offers = {
        "triton": Offer(k and k.steps_and_rates, kernel_lacks(dt, bias, A_log), small_asked(dt)),
        "reference": reference.steps_and_rates,
    }
    return resolve("steps_and_rates", backend, offers)(dt, bias, A_log)
