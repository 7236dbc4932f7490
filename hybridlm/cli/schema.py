"""`hybridlm schema`: the JSON Schema of a model file, for editors and checkers."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTERPOLATION = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_.]*\}$", "description": "another key's value"}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def print_schema() -> None:
    """JSON Schema of a model's YAML file: the keys of a model, and of every mixer and MLP that is registered here."""
    import json

    print(json.dumps(model_schema(), indent=2, ensure_ascii=False))


def model_schema() -> dict[str, Any]:
    """The schema, with one definition for each registered mixer and MLP. A plugin that does not import is left out."""
    from hybridlm.compose.ends import EMBEDS, HEADS
    from hybridlm.compose.spec import COMBINATIONS, NORM_NAMES, NORM_PLACES, ModelSpec
    from hybridlm.registry import mixers, mlps

    parts = {"mixer": _parts(mixers), "mlp": _parts(mlps)}
    ends = {"embed": _ends(EMBEDS), "head": _ends(HEADS)}
    root = _fields(ModelSpec)
    root["properties"] |= {
        "pattern": {"type": ["string", "array", "object"], **_about(root, "pattern")},
        "blocks": {"type": "object", "additionalProperties": {"$ref": "#/$defs/block"}, **_about(root, "blocks")},
        "mlp": {"$ref": "#/$defs/mlp", **_about(root, "mlp"), "default": "swiglu"},
        "embed": {"$ref": "#/$defs/embed", **_about(root, "embed"), "default": "tokens"},
        "head": {"$ref": "#/$defs/head", **_about(root, "head"), "default": "lm"},
    }
    root["anyOf"] = [{"type": "object", "required": names} for names in (["vocab_size"], ["embed", "head"])]
    for name, allowed in {"combine": COMBINATIONS, "norm": NORM_NAMES, "norms": NORM_PLACES}.items():
        root["properties"][name]["enum"] = list(allowed)
    block = {
        "type": "object",
        "properties": {kind: {"$ref": f"#/$defs/{kind}"} for kind in parts} | _options(),
        "additionalProperties": False,
    }
    definitions = {
        "interpolation": INTERPOLATION,
        "block": block,
        **{kind: _choice(kind, parts[kind], ["none"], [{"type": "null"}]) for kind in parts},
        **{kind: _choice(kind, ends[kind], [], []) for kind in ends},
    }
    parts |= ends
    definitions |= {f"{kind}.{name}": part for kind in parts for name, part in parts[kind].items()}
    return {"$schema": DIALECT, "title": "A hybridlm model", **root, "$defs": definitions}


def _options() -> dict[str, Any]:
    """What a block may say besides. Where it says nothing of its norms, the model's key holds."""
    from hybridlm.compose.options import INPUTS, OUTPUTS, Options, Ranks
    from hybridlm.compose.spec import NORM_PLACES

    options, ranks = _fields(Options)["properties"], _fields(Ranks)
    for name, allowed in {"norms": NORM_PLACES, "input": INPUTS, "output": OUTPUTS}.items():
        options[name]["enum"] = list(allowed)
    options["low_rank"]["anyOf"] = [*_typed(int)["anyOf"], ranks]
    del options["norms"]["default"]
    return options


def _choice(kind: str, parts: dict[str, Any], words: list[str], others: list[dict[str, Any]]) -> dict[str, Any]:
    """A part is its name alone, unless it has fields that must be said, or a mapping with its type and fields."""
    alone = [name for name, part in parts.items() if part["required"] == ["type"]]
    mappings = [{"$ref": f"#/$defs/{kind}.{name}"} for name in parts]
    return {"anyOf": [{"enum": [*alone, *words]}, *others, *mappings]}


def _parts(registry: Any) -> dict[str, dict[str, Any]]:
    return {entry.name: _part(entry.name, entry.part) for entry in registry.listing() if entry.part is not None}


def _ends(kinds: dict[str, type]) -> dict[str, dict[str, Any]]:
    from hybridlm.compose.ends import POOLS

    schemas = {name: _part(name, kind, kind) for name, kind in kinds.items()}
    for schema in schemas.values():
        if "pool" in schema["properties"]:
            schema["properties"]["pool"]["enum"] = list(POOLS)
    return schemas


def _part(name: str, part: type, config: type | None = None) -> dict[str, Any]:
    """The mapping of a part; config: the dataclass of its fields, its own by default."""
    from hybridlm.compose.docstrings import first_sentence

    schema = _fields(config or part.Config)
    schema["properties"] = {"type": {"const": name}, **schema["properties"]}
    return {"description": first_sentence(part.__doc__), **schema, "required": ["type", *schema["required"]]}


def _fields(cls: type) -> dict[str, Any]:
    """The fields of a dataclass: types, defaults, and what its docstring says of each."""
    from hybridlm.compose.docstrings import field_docs_of

    docs, hints = field_docs_of(cls), typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    properties = {name: _typed(hints[name]) for name in fields}
    for name, field in fields.items():
        if name in docs:
            properties[name]["description"] = docs[name]
        if field.default is not dataclasses.MISSING:
            properties[name]["default"] = field.default
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _typed(hint: Any) -> dict[str, Any]:
    """The schema of an annotation. A number may also be interpolated from another key."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [_typed(option) for option in typing.get_args(hint) if option is not type(None)]
        return {"anyOf": [*(option for one in inner for option in one.get("anyOf", [one])), {"type": "null"}]}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _typed(typing.get_args(hint)[0])}
    if hint in (int, float):
        return {"anyOf": [{"type": _TYPES[hint]}, {"$ref": "#/$defs/interpolation"}]}
    return {"type": _TYPES[hint]} if hint in _TYPES else {}


def _about(root: dict[str, Any], name: str) -> dict[str, str]:
    return {"description": root["properties"][name].get("description", "")}
