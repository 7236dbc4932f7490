"""HiPPO: linear systems whose state is the past of their input, written in an orthonormal basis. Float64, on the CPU.

    x'(t) = A x(t) + B f(t),    x_i(t) = integral of f(t - s) p_i(s) w(s) ds    over ages s, how long ago

measures: A and B. structure: what S4, S4D and S5 make of A. discrete: steps. basis: what a state means. online: states
of a signal.
"""

from hybridlm.ops.hippo.basis import basis, kernel, reconstruct, weight
from hybridlm.ops.hippo.discrete import METHODS, discretize, discretize_scaled
from hybridlm.ops.hippo.measures import MEASURES, transition
from hybridlm.ops.hippo.online import project, project_scaled
from hybridlm.ops.hippo.structure import KINDS, diagonal, dplr, low_rank, nplr

__all__ = [
    "KINDS",
    "MEASURES",
    "METHODS",
    "basis",
    "diagonal",
    "discretize",
    "discretize_scaled",
    "dplr",
    "kernel",
    "low_rank",
    "nplr",
    "project",
    "project_scaled",
    "reconstruct",
    "transition",
    "weight",
]
