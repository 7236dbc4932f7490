"""Which families hold a model exactly, which of them it goes as, and why not as the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hybridlm.compose.plan import Stack
from hybridlm.errors import ExportError
from hybridlm.export.family import Family, family, fitting
from hybridlm.export.halves import KNOWN


def choose(stack: Stack, to: str) -> Family:
    """The family that `to` names, or for auto the first that fits. ExportError: it does not fit, or none does."""
    if to != "auto":
        target = family(to)
        if said := target.misfits(stack):
            raise unsayable(to, said, _instead(stack))
        return target
    found = fits(stack)
    if not found:
        raise ExportError("auto: no family is exact for this model:\n" + passed_over(stack) + _instead(stack))
    return family(found[0])


def unsayable(to: str, said: Iterable[str], instead: str) -> ExportError:
    """For a model that a target cannot hold: every reason, and what to do instead."""
    return ExportError("\n  ".join([f"{to}: this model cannot be said in it:", *said]) + instead)


def fits(stack: Stack) -> list[str]:
    """The families that hold the model exactly; the first is served most widely."""
    return [name for name, said in fitting(stack).items() if not said]


def exportable(stack: Stack) -> dict[str, Any]:
    """{as: families that hold it exactly, nearest: of the others, or None, misfits: {family: why not}}; found fast."""
    if not stack.spec.is_language_model:
        return {"as": [], "nearest": None, "misfits": {}}
    found = fitting(stack)
    misfits = {name: said for name, said in found.items() if said}
    return {"as": [name for name in found if name not in misfits], "nearest": nearest(misfits), "misfits": misfits}


def nearest(misfits: dict[str, list[str]]) -> str | None:
    """The family that wants the fewest other layers, and then the fewest other settings."""
    layers = {name: sum(KNOWN in one for one in said) for name, said in misfits.items()}
    return min(misfits, key=lambda name: (layers[name], len(misfits[name])), default=None)


def passed_over(stack: Stack) -> str:
    """Why each family does not fit, in a line each: the first reason, and how many more."""
    found = {name: said for name, said in fitting(stack).items() if said}
    more = {name: f" (and {len(said) - 1} more)" if len(said) > 1 else "" for name, said in found.items()}
    return "\n".join(f"  {name:15}{said[0]}{more[name]}" for name, said in found.items())


def _instead(stack: Stack) -> str:
    """What to do instead."""
    if exact := fits(stack):
        return f"\nIt fits: {', '.join(exact)}."
    found = fitting(stack)
    name = nearest(found)
    return (
        f"\nNearest is {name}: {'; '.join(found[name])}.\n"
        "--to remote-code writes any language model, with a modeling file for transformers; --to safetensors our form."
    )
