"""A model spec with changes by dotted path: blocks.M.mixer.d_state, d_model, pattern.

The spec is a plain mapping, as its file holds it: what follows from a width, say, follows from the changed one. The
steps of a path that a file may leave out are filled in: `blocks` by the default alphabet, `mixer: mamba2` by its
mapping, a block's `mlp` by that of the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any

from hybridlm.compose.pattern import parse
from hybridlm.compose.plan import default_blocks
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, did_you_mean

FIELDS = tuple(field.name for field in fields(ModelSpec))
PARTS = ("mixer", "mlp", "embed", "head")
"""Keys whose value may be a name alone, which stands for {type: name}."""


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with each dotted path set to its value. SpecError: a path that leads nowhere, with the nearest."""
    spec = deepcopy(dict(base))
    if not spec.get("blocks") and any(path.partition(".")[0] == "blocks" for path in changes):
        spec["blocks"] = _alphabet(changes.get("pattern", spec["pattern"]), changes)
    for path, value in sorted(changes.items(), key=lambda change: change[0].count(".")):  # whole blocks before fields
        _set(spec, path, deepcopy(value))
    return spec


def _alphabet(pattern: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The default blocks that the pattern uses or a change names, and attention, for which an axis may ask."""
    default = default_blocks()
    used = set(parse(pattern, names=list(default)).names) if isinstance(pattern, str) else set()
    used |= {path.split(".")[1] for path in changes if path.startswith("blocks.")} | {"A"}
    return {name: block for name, block in default.items() if name in used}


def _set(spec: dict[str, Any], path: str, value: Any) -> None:
    keys = path.split(".")
    if keys[0] not in FIELDS:
        raise SpecError(
            f"{path}: a model has no {keys[0]!r}; known: {', '.join(FIELDS)}.{did_you_mean(keys[0], FIELDS)}"
        )
    inside = spec
    for i, key in enumerate(keys[:-1]):
        here, below = ".".join(keys[: i + 1]), inside.get(key)
        if key == "mlp" and i == 2 and below is None:
            below = spec.get("mlp", "swiglu")
        if key in PARTS and isinstance(below, str):
            below = {"type": below}
        if key in FIELDS and below is None and key in PARTS:
            below = {"type": _default(key)}
        if not isinstance(below, Mapping):
            raise SpecError(f"{path}: {here}: {_lacking(inside, key, here)}")
        inside[key] = inside = dict(below)
    inside[keys[-1]] = value


def _lacking(inside: Mapping[str, Any], key: str, here: str) -> str:
    if key in inside:
        return f"{inside[key]!r} has no fields"
    near = did_you_mean(key, list(inside))
    return f"not defined; {here.rpartition('.')[0]} has {', '.join(inside) or 'nothing'}.{near}"


def _default(key: str) -> str:
    return str(next(field.default for field in fields(ModelSpec) if field.name == key))
