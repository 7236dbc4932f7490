"""Where seeded bugs are entered, each under the law that must catch it."""

from __future__ import annotations

from contextlib import contextmanager

from toy import Toy

TOY_MUTANTS: dict[str, tuple[str, type[Toy]]] = {}
"""name -> (law, a toy with a bug)"""

PATCHES: dict[str, tuple] = {}
"""name -> (law, what is under test, a context manager that seeds a bug in it)"""


def seeded(law):
    """Enter a mutant of the toy."""

    def enter(mutant):
        TOY_MUTANTS[mutant.__name__] = (law, mutant)
        return mutant

    return enter


def with_conv(law):
    """Enter a toy whose convolution is this one."""

    def enter(conv):
        TOY_MUTANTS[conv.__name__] = (law, type(conv.__name__, (Toy,), {"conv_class": conv}))
        return conv

    return enter


def patched(law, subject):
    """Enter a generator that patches the real code while it is suspended."""

    def enter(function):
        PATCHES[function.__name__] = (law, subject, contextmanager(function))
        return function

    return enter
