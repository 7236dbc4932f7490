"""The laws of state, as a kit that runs on any mixer and any model: yours too.

    from hybridlm.testing import assert_laws, check_mixer, report

    report(check_mixer("mamba2"))                          # a table: every law, worst error beside its limit
    report(check_mixer(MyMixer, dtype=torch.bfloat16))     # a class that is not registered
    assert_laws(MyMixer, laws=["C2", "C5"])                # in a test: raises with the cases that break a law

    python -m hybridlm.testing mamba2 --dtype bfloat16

Silent wrong numbers where two code paths meet are what goes wrong in hybrid models: text comes out that is finite and
plausible. Each law exists because a well-known project broke it. Every comparison is against float64, step by step.
"""

from __future__ import annotations

from hybridlm.testing.check import assert_laws, check_mixer, check_model, prove, require, violations
from hybridlm.testing.laws import LAWS, Law, batch, compiled, house, kernels, learning, memory, models, sequence  # noqa: F401 - each enters its laws
from hybridlm.testing.report import report
from hybridlm.testing.result import Result
from hybridlm.testing.subject import Solo, Subject
from hybridlm.testing.whole import Whole

__all__ = [
    "LAWS",
    "Law",
    "Result",
    "Solo",
    "Subject",
    "Whole",
    "assert_laws",
    "check_mixer",
    "check_model",
    "prove",
    "report",
    "require",
    "violations",
]
