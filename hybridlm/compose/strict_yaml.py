"""YAML read strictly: a small, predictable part of YAML 1.2, safe to read from strangers.

Plain scalars mean what YAML 1.2's core schema says, less its octal and hexadecimal integers:

    null ~ (or nothing)     None
    true false              bool; `yes`, `no`, `on` and `off` are strings, and so is a date
    12 -3                   int of at most 64 bits; `010`, `0x10`, `1_000` and `1:30` are strings
    1.5 .5 1e-3 .inf        float; .nan is an error, since no setting means it

A file is one mapping with string keys, UTF-8, at most 256 KiB, depth 32 and 10,000 nodes. Anchors, aliases, merge keys,
tags, directives, duplicate keys and a second document are errors. All of it is checked event by event, before anything
large is built. Afterwards OmegaConf resolves interpolations `${d_model}`, of which only the plain kind is let through.

Every error is a SpecError: `tiny.yaml:3:5: blocks.M: duplicate key 'mixer' (first on line 2)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from hybridlm.errors import SpecError, did_you_mean

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_INTERPOLATIONS = 1_000
MAX_CHAIN = 8  # an interpolation of an interpolation of ...
MAX_TARGET = 1_024  # characters of an interpolated text

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: 20 times as fast

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class YamlError(SpecError):
    """A SpecError that knows its place: `line` and `column` from 1, `index` from 0, `path` of the key, `reason`."""

    def __init__(self, reason: str, *, name: str, mark: Any = None, path: str = ""):
        self.reason, self.path = reason, path
        self.line, self.column, self.index = (mark.line + 1, mark.column + 1, mark.index) if mark else (1, 1, 0)
        place = f"{name}:{self.line}:{self.column}" if mark else name
        super().__init__(": ".join(part for part in (place, path, reason) if part))


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the integer {_shown(text)} needs more than 64 bits")
    return int(text)


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not allowed; no setting means it")


# What a plain scalar means: tag, pattern, constructor. What matches none of them is a string.
_SCALARS = [
    ("null", re.compile(r"~|null|Null|NULL|"), lambda text: None),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*)"), _integer),
    ("float", re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"), float),
    ("float", re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    ("float", re.compile(r"\.(nan|NaN|NAN)"), _not_a_number),
]


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`, checked and interpolated. SpecError: see the module's text."""
    name = str(path)
    try:
        data = _contents(Path(path))
    except FileNotFoundError:
        raise YamlError("no such file", name=name) from None
    except (OSError, ValueError) as error:
        raise YamlError(f"cannot be read: {error}", name=name) from None
    if len(data) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES:,} bytes", name=name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 text (byte {error.start}); is it a binary file?", name=name) from None
    return load(text, name=name)


def _contents(file: Path) -> bytes:
    """What is in a regular file, as far as one byte over the limit."""
    if file.is_dir():
        raise ValueError("it is a directory; give the path of a YAML file")
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    with file.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def load(text: str, *, name: str) -> dict[str, Any]:
    """The mapping that YAML `text` holds, checked and interpolated; `name` (a file's name) stands in errors."""
    return interpolate(compose(text, name=name), name=name)


def compose(text: str, *, name: str) -> dict[str, Any]:
    """The mapping that YAML `text` holds, checked, with its interpolations still in it."""
    try:
        size = len(text.encode("utf-8")) if len(text) <= MAX_BYTES else len(text)
    except UnicodeEncodeError as error:
        raise YamlError(f"not UTF-8 text (character {error.start})", name=name) from None
    if size > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES:,} bytes", name=name)
    composer = _Composer(text, name)
    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        reason = error.problem or error.context or "not YAML"
        if "mapping values are not allowed" in reason:
            reason += " (text that holds ': ' needs quotes)"
        raise YamlError(reason, name=name, mark=error.problem_mark, path=composer.path()) from None
    except yaml.YAMLError as error:  # a character that no YAML file may hold
        raise YamlError(str(error).splitlines()[0], name=name) from None


class _Composer:
    """Builds plain Python values from the parser's events, refusing what is not allowed as soon as it is met."""

    def __init__(self, text: str, name: str):
        self.name = name
        self.events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_PARSER))
        self.nodes = 0
        self.keys: list[str] = []

    def path(self) -> str:
        return ".".join(self.keys)

    def fail(self, reason: str, event: yaml.Event) -> NoReturn:
        raise YamlError(reason, name=self.name, mark=event.start_mark, path=self.path())

    def document(self) -> dict[str, Any]:
        next(self.events)  # the stream's start
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            self.fail("empty; expected a mapping such as `d_model: 256`", start)
        if start.version or start.tags:
            self.fail("YAML directives (%) are not allowed", start)
        root = next(self.events)
        value = self.node(root)
        if value is None:
            self.fail("empty; expected a mapping such as `d_model: 256`", root)
        if not isinstance(value, dict):
            self.fail(f"expected a mapping such as `d_model: 256`, got {_kind(value)}", root)
        next(self.events)  # the document's end
        if not isinstance(after := next(self.events), yaml.StreamEndEvent):
            self.fail("a second document; one file holds one mapping", after)
        return value

    def node(self, event: yaml.Event) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.fail(f"more than {MAX_NODES:,} nodes", event)
        if isinstance(event, yaml.AliasEvent):
            self.fail(f"the alias *{event.anchor} is not allowed; write the value out or interpolate ${{key}}", event)
        if event.anchor is not None:
            self.fail(f"the anchor &{event.anchor} is not allowed; interpolate ${{key}} instead", event)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.fail(f"the tag {tag} is not allowed; values are plain YAML", event)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        if len(self.keys) >= MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}", event)
        return self.mapping() if isinstance(event, yaml.MappingStartEvent) else self.sequence()

    def sequence(self) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            self.keys.append(str(len(result)))
            result.append(self.node(event))
            self.keys.pop()
        return result

    def mapping(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, lines)
            self.keys.append(key)
            value = next(self.events)
            if ":" in key and isinstance(value, yaml.ScalarEvent) and not value.value and not value.style:
                self.fail("a space is missing after the colon", event)  # {window:128}
            result[key] = self.node(value)
            self.keys.pop()
        return result

    def key(self, event: yaml.Event, lines: dict[str, int]) -> str:
        """The key at `event`, which is entered in `lines`, the keys so far."""
        key = self.node(event)
        if not isinstance(key, str):
            self.fail(f"the key {_shown(key)} is {_kind(key)}; keys are strings (put it in quotes)", event)
        if key == "<<":
            self.fail("the merge key << is not allowed; write the values out", event)
        if key in lines:
            self.fail(f"duplicate key {_shown(key)} (first on line {lines[key]})", event)
        lines[key] = event.start_mark.line + 1
        return key

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        if _SURROGATE.search(event.value):  # PyYAML without libyaml lets "\ud800" through
            self.fail("half of a surrogate pair is no text", event)
        if event.style:  # quoted, or a block scalar
            return event.value
        for _, pattern, construct in _SCALARS:
            if pattern.fullmatch(event.value):
                try:
                    return construct(event.value)
                except ValueError as error:
                    self.fail(str(error), event)
        return event.value


def _kind(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "a bool", int: "an integer", float: "a float"}
    return kinds.get(type(value), "null")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ------------------------------------------------------------------------------------------------------ interpolation
def interpolate(data: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Replace `${dotted.key}`, counted from the root of `data`, by the scalar found there.

    A scalar holds at most one interpolation, which is a plain dotted key: no resolver such as `${oc.env:HOME}`, nothing
    nested, nothing relative. SpecError names the path: a missing key with the nearest, a target that is no scalar, a
    cycle. The guards bound the work before OmegaConf sees any of it.
    """
    texts = {path: text for path, text in _texts(data) if "${" in text}
    if not texts:
        return data
    if len(texts) > MAX_INTERPOLATIONS:
        raise YamlError(f"more than {MAX_INTERPOLATIONS:,} interpolations", name=name)
    for path, text in texts.items():
        _follow(data, path, text, name)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    except OmegaConfBaseException as error:  # such as the target "???", which OmegaConf calls missing
        reason = str(error).splitlines()[0]
        raise YamlError(f"interpolation: {reason}", name=name, path=str(error.full_key or "")) from None


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string in `value` with its dotted path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, f"{path}.{key}" if path else str(key))


def _follow(data: dict[str, Any], path: str, text: str, name: str) -> None:
    """Check the chain of interpolations that starts with `text` at `path`."""
    chain = [path]
    while "${" in text:
        match = _REFERENCE.search(text)
        if not match or text.count("${") > 1 or "\\" in text:
            reason = f"{_shown(text)}: an interpolation is one ${{key}} or ${{dotted.key}} in a value, and nothing else"
            raise YamlError(reason, name=name, path=chain[-1])
        target = _lookup(data, match[1], chain[-1], name)
        if match[1] in chain:
            raise YamlError(f"a cycle: {' -> '.join([*chain, match[1]])}", name=name, path=path)
        chain.append(match[1])
        if len(chain) > MAX_CHAIN:
            raise YamlError(f"a chain of more than {MAX_CHAIN} interpolations", name=name, path=path)
        text = target if isinstance(target, str) else ""


def _lookup(data: dict[str, Any], key: str, path: str, name: str) -> Any:
    """The scalar at the dotted `key`, which is asked for at `path`."""
    value: Any = data
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            near = did_you_mean(part, value) if isinstance(value, dict) else ""
            raise YamlError(f"${{{key}}}: there is no key {part!r}.{near}", name=name, path=path)
        value = value[part]
    if isinstance(value, (dict, list)):
        raise YamlError(f"${{{key}}} is {_kind(value)}; only a scalar can be interpolated", name=name, path=path)
    if isinstance(value, str) and len(value) > MAX_TARGET:
        raise YamlError(f"${{{key}}} is longer than {MAX_TARGET:,} characters", name=name, path=path)
    return value


# ------------------------------------------------------------------------------------------------------------ writing
class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `load` would not read back as strings."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _ in _SCALARS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), None)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = '"' if not text.isprintable() else None  # line breaks stay on one line, as \n
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(mapping: Mapping[str, Any]) -> str:
    """Readable YAML that `load` reads back: block style, a mapping or list of scalars on one line."""
    node = _Dumper("", default_flow_style=None, sort_keys=False).represent_data(dict(mapping))
    node.flow_style = False
    return yaml.serialize(node, Dumper=_Dumper, width=120, allow_unicode=True)


def dump_flow(mapping: Mapping[str, Any]) -> str:
    """`{window: 128, mlp: {type: gelu}}`: the mapping on one line, as a pattern's override holds it."""
    options = {"default_flow_style": True, "width": float("inf"), "allow_unicode": True, "sort_keys": False}
    return yaml.dump(dict(mapping), Dumper=_Dumper, **options).strip()
