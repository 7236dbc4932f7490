"""Statistics of few runs: intervals of paired differences, families of tests, the best of an axis, steps to solve.

    paired_difference(a, b)           # a and b (seeds,): the mean difference, its interval and its p value
    mean_interval(values)             # the same of one arm, against 0
    wilson(solved, seeds)             # the interval of a share
    holm(p)                           # p values of several arms against one reference
    minimum_detectable(sd, seeds)     # the difference that so many seeds would have found
    argmin_interval(x, losses)        # where along an axis a loss is lowest, or that it is flat
    median_steps(solved_at, steps)    # steps to solve, where some runs never did

Numpy only. docs/statistics.md says what each of them can and cannot tell, with the coverage that was measured.
"""

from hybridlm.ablate.statistics.argmin import Argmin, argmin_interval
from hybridlm.ablate.statistics.families import holm
from hybridlm.ablate.statistics.paired import Difference, mean_interval, paired_difference
from hybridlm.ablate.statistics.power import minimum_detectable
from hybridlm.ablate.statistics.proportion import wilson
from hybridlm.ablate.statistics.survival import median_steps

__all__ = [
    "Argmin",
    "Difference",
    "argmin_interval",
    "holm",
    "mean_interval",
    "median_steps",
    "minimum_detectable",
    "paired_difference",
    "wilson",
]
