"""The kit is tested too: it finds every seeded bug, by the law that names its class, and none in the host.

A mutant that survives is a hole in the kit: the kit is then made stronger, never the mutant more blatant.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# tests/ holds no packages; each of these five enters its bugs in seeds
import patches_core
import patches_mixers
import patches_zoo
import toy_calls
import toy_parts
from seeds import PATCHES, TOY_MUTANTS
from toy import Toy

from hybridlm.testing import LAWS, Result, Solo, Whole, check_mixer, require, violations
from hybridlm.testing.check import numbers
from hybridlm.testing.laws.law import Law, Proof
from hybridlm.testing.patterns import alphabet, wide_alphabet
from hybridlm.testing.subject import Subject

ENTERED = (patches_core, patches_mixers, patches_zoo, toy_calls, toy_parts)
TOKENS = 36


def subject(name: str) -> Solo | Whole:
    """A registered mixer, or a model of a pattern."""
    if "[" not in name:
        return Solo(name, tokens=TOKENS)
    return Whole({"pattern": name, "blocks": alphabet() | wide_alphabet(), "d_model": 32, "vocab_size": 40})


def cases_of_the_host() -> Iterator:
    """Tracing the host (C20, which float32 alone does) takes as long as all the rest: by default a mutant does it."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for number in numbers():
            traced = number == "C20" and dtype == torch.float32
            yield pytest.param(dtype, number, marks=pytest.mark.deep if traced else (), id=f"{dtype}-{number}")


@pytest.mark.parametrize(("dtype", "number"), list(cases_of_the_host()))
def test_the_host_keeps_every_law(dtype, number):
    require(check_mixer(Toy, dtype=dtype, laws=[number], tokens=TOKENS))


@functools.cache
def sound(law: str, what: str) -> None:
    """Without a bug the law holds; several bugs may ask."""
    require(LAWS[law].check(subject(what)))


def hasty(law: str) -> Law:
    """The law as far as its first violation: one is enough to catch a bug."""

    def up_to_it(prove: Proof) -> Proof:
        def proof(under_test: Subject) -> Iterator[Result]:
            for result in prove(under_test):
                yield result
                if violations([replace(result, law=law)]):
                    return

        return proof

    return replace(LAWS[law], proofs=[(kind, up_to_it(prove)) for kind, prove in LAWS[law].proofs])


def stale(found: list[Result]) -> bool:
    """A patch that no longer fits the code raises, and would pass for a mutant that was caught."""
    return any(result.detail.startswith(("TypeError", "AttributeError", "NameError")) for result in found)


@pytest.mark.parametrize("name", TOY_MUTANTS)
def test_toy_mutant_is_caught(name):
    law, mutant = TOY_MUTANTS[name]
    found = violations(hasty(law).check(Solo(mutant, tokens=TOKENS)))
    assert found, f"{name} survives {law}: {LAWS[law].title}"
    assert not stale(found), found


@pytest.mark.parametrize("name", PATCHES)
def test_patched_mutant_is_caught(name):
    law, what, seed = PATCHES[name]
    sound(law, what)
    with seed():
        found = violations(hasty(law).check(subject(what)))
    assert found, f"{name} survives {law}: {LAWS[law].title}"
    assert not stale(found), found


def test_there_are_enough():
    assert len(TOY_MUTANTS) + len(PATCHES) >= 40
    named = {law for law, *_ in [*TOY_MUTANTS.values(), *PATCHES.values()]}
    assert named == set(numbers()) - {"C15"}  # which compares nothing: it says what ran


class Silent(Toy):
    """Returns zeros, and keeps its state."""

    def project(self, y):
        return 0 * super().project(y)


class Deaf(Toy):
    """Passes its input through, and keeps its state."""

    def forward(self, x, state=None, ctx=None):
        return x, super().forward(x, state, ctx)[1]


@pytest.mark.parametrize("number", ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C10", "C14", "C17", "C23"])
def test_silence_keeps_no_law(number):
    """Every law that looks at outputs turns zeros down: there is nothing to compare."""
    assert violations(check_mixer(Silent, laws=[number], tokens=TOKENS))


def test_a_mixer_that_does_not_mix_is_turned_down():
    assert violations(check_mixer(Deaf, laws=["C1"], tokens=TOKENS))
