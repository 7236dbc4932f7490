"""HiPPO: linear systems whose state is the past of their input, written in an orthonormal basis. Pure, in float64.

x'(t) = A x(t) + B f(t)        x_n(t) = integral of f(t - s) p_n(s) w(s) ds,  s = age: how long ago
"""

from hybridlm.ops.hippo.measures import MEASURES, transition
from hybridlm.ops.hippo.structure import KINDS, diagonal, dplr, nplr

__all__ = ["KINDS", "MEASURES", "diagonal", "dplr", "nplr", "transition"]
