"""One file out of many modules: whatever they call things, what is copied computes the same, and no more is copied."""

from __future__ import annotations

import importlib
import sys
from textwrap import dedent
from types import ModuleType

import pytest
import torch

from hybridlm.errors import SpecError
from hybridlm.export.remote.bundle import bundle
from hybridlm.export.remote.scopes import uses
from hybridlm.export.remote.source import Library, Source, Target

COUNT = iter(range(1000))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """(texts of modules) -> their library, and a function that makes the bundle of some names and runs it."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"bundled_{next(COUNT)}"

    def make(instead=None, **texts):
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **texts}.items():
            path = tmp_path / name / f"{module}.py"
            path.write_text(dedent(text).replace("HERE", name), encoding="utf-8")
        importlib.invalidate_caches()
        library = Library({name, "hybridlm"}, {}, instead or {})

        def run(*roots):
            text = bundle(library, [Target(f"{name}.{module}", root) for module, root in (r.split(".") for r in roots)])
            alone = ModuleType(f"{name}_alone")
            monkeypatch.setitem(sys.modules, alone.__name__, alone)  # where dataclasses look
            exec(compile(text, "bundle.py", "exec"), vars(alone))
            return text, vars(alone)

        return run

    return make


def test_two_modules_may_call_different_things_the_same(package):
    run = package(
        a="def _twice(x):\n    return 2 * x\n\n\ndef f(x):\n    return _twice(x)\n",
        b="""
            from HERE.a import f as other

            def _twice(x):
                return x + x + 1

            def f(x):
                return _twice(x) + other(x)
        """,
    )
    text, held = run("b.f")
    assert held["f"](5) == 21
    assert text.count("def ") == 4


def test_a_name_that_a_function_binds_is_not_the_modules(package):
    run = package(
        tools="def linear(x):\n    return 3 * x\n\n\ndef scale(x):\n    return 10 * x\n",
        use="""
            from HERE import tools
            from HERE.tools import scale

            def f(linear):
                return tools.linear(linear)

            def g(values):
                return [scale for scale in values], scale(1), {scale: 1 for scale in values}

            def h(x):
                if (scale := x) > 1:
                    return scale
                return 0

            class C:
                scale = 7

                def same(self):
                    return scale(self.scale)

            def everything(x):
                return f(x), g([x]), h(x), C().same(), (lambda scale: scale)(x)
        """,
    )
    _, held = run("use.everything")
    assert held["everything"](2) == (6, ([2], 10, {2: 1}), 2, 70, 2)


def test_names_of_a_module_are_found_in_every_scope():
    source = Source(
        "m",
        "def f(a, b=c, *d: e, **g) -> h:\n    i = j\n    def k(l=i): return l + m\n    return [n for o in p if o]\n",
    )
    assert [use.node.id for use in uses(source.tree.body[0])] == ["c", "e", "h", "j", "m", "p", "n"]


def test_what_is_not_needed_is_not_copied(package):
    run = package(
        a='''
            from dataclasses import dataclass
            from typing import ClassVar

            @dataclass
            class A:
                """An A."""

                size: int
                letter: ClassVar[str] = "A"
                """Its letter."""
                kind = "a"

                def used(self):
                    return self.size + len(self.kind)

                # this one costs a lot
                def unused(self):
                    return costly(self)

                def __len__(self):
                    return self.size

                @property
                def last(self):
                    return costly(self)

            def costly(a):
                raise ValueError

            def f(n):
                return A(n).used()
        '''
    )
    text, held = run("a.f")
    assert held["f"](3) == 4
    assert not [word for word in ("unused", "costs a lot", "letter", "costly", "last", "property") if word in text]
    assert "__len__" in text


def test_an_op_is_its_reference(package):
    run = package(
        ref="def double(x, sign):\n    return sign * 2 * x\n",
        fast="import triton\n\n\ndef double(x):\n    return x\n",
        op='''
            from functools import partial

            import torch
            from jaxtyping import Float
            from torch import Tensor

            from hybridlm.ops.backend import Offer, resolve
            from HERE import fast, ref

            LIMIT = 8

            def double(x: Float[Tensor, "b t"], *, backend: str = "auto") -> Float[Tensor, "b t"]:
                """Twice x."""
                x, kernel = x + 0, fast.double
                sign = 1
                if len(x) > LIMIT:
                    offers = {"triton": Offer(kernel)}
                offers = {"triton": Offer(kernel, _lacks(x))}
                offers["reference"] = partial(ref.double, sign=sign)
                run = resolve("double", backend, offers)
                with torch.autocast("cpu", enabled=False):
                    return run(x)

            def _lacks(x):
                return fast.why(x)

            def four(x: Float[Tensor, "b t"], backend: str = "auto") -> Float[Tensor, "b t"]:
                each = partial(double, backend=backend)
                return double(each(x), backend=backend)
        ''',
    )
    text, held = run("op.four")
    x = torch.randn(2, 3)
    assert torch.equal(held["four"](x), 4 * x)
    gone = ("triton", "backend", "Offer", "LIMIT", "jaxtyping", "Float", "kernel")
    assert not [word for word in gone if word in text]
    assert "def double_op(x: Tensor) -> Tensor:" in text
    assert "each = double_op" in text


def test_a_constant_keeps_all_that_made_it_and_said_what_it_is(package):
    run = package(
        a='''
            # Sizes of everything.
            SIZES = {"a": 1}  # one
            SIZES |= {"b": 2}
            """By name."""

            BOTH = FIRST, SECOND = 1, 2

            def f():
                return SIZES, SECOND
        '''
    )
    text, held = run("a.f")
    assert held["f"]() == ({"a": 1, "b": 2}, 2)
    assert "# Sizes of everything." in text
    assert "# one" in text
    assert '"""By name."""' in text


def test_what_stands_instead_is_copied_instead(package):
    run = package(
        {"einops:rearrange": "hybridlm.export.remote.reshape:rearrange"},
        a="from einops import rearrange\n\n\ndef f(x):\n    return rearrange(x, 'a b -> b a')\n",
    )
    text, held = run("a.f")
    x = torch.randn(2, 3)
    assert torch.equal(held["f"](x), x.T)
    assert "einops" not in text.replace("einops (2022)", "")


def test_another_package_is_refused_by_name(package):
    run = package(a="import numpy as np\n\n\ndef f(x):\n    return np.asarray(x)\n")
    with pytest.raises(SpecError, match=r"bundled_\d+\.a imports numpy"):
        run("a.f")


def test_what_changes_its_module_is_refused(package):
    run = package(a="count = 0\n\n\ndef f(x):\n    global count\n    count += x\n    return count\n")
    with pytest.raises(SpecError, match=r"bundled_\d+\.a, line 5: global count"):
        run("a.f")


def test_annotations_in_quotes_follow_their_names(package):
    run = package(
        a="class B:\n    pass\n",
        b="""
            from HERE import a

            class B(a.B):
                def me(self) -> "B | None":
                    return self

            def f(x: "B") -> "a.B":
                return B().me()
        """,
    )
    text, held = run("b.f")
    assert isinstance(held["f"](1), held["B_b"])
    assert "def me(self) -> B_b | None:" in text
    assert "def f(x: B_b) -> B:" in text
