"""From a spec to its layers: every letter looked up, every default filled in, every number checked. No tensor yet.

`plan(spec)` is the one reading of a spec. `build` makes modules of it, `cost` adds it up, and its `spec` is the
resolved one, which says everything explicitly and is what checkpoints store.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hybridlm import checks
from hybridlm.compose import notation
from hybridlm.compose.pattern import MLP_ALONE, Block, Parallel, Pattern, Place, parse
from hybridlm.compose.spec import COMBINATIONS, ModelSpec, require_known
from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.registry import Registry, mixers, mlps

NONE = "none"
RESERVED_LABELS = frozenset(dir(torch.nn.ModuleDict()))  # model.shared is one, and refuses these as keys


@dataclass(frozen=True)
class Part:
    """A mixer or an MLP with its resolved config."""

    type: str
    config: Any
    registry: Registry

    @property
    def cls(self) -> type:
        """The class behind the name."""
        return self.registry.get(self.type)

    def to_dict(self) -> dict[str, Any]:
        """{type: ..., every field: ...}"""
        return {"type": self.type, **dataclasses.asdict(self.config)}


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the stack.

    name:    the text of its place in the pattern.
    mixers:  none (an MLP alone), one, or several side by side.
    mlp:     what follows, or None.
    combine: how several mixers are joined.
    label:   the name of the weights that it shares, or None.
    """

    name: str
    mixers: tuple[Part, ...]
    mlp: Part | None
    combine: str
    label: str | None


@dataclass(frozen=True)
class Stack:
    """A planned model: its resolved spec and its layers from the bottom up."""

    spec: ModelSpec
    layers: tuple[LayerPlan, ...]

    @property
    def recurrent(self) -> bool:
        """Whether some mixer knows the order of the past by itself, so that attention needs no positions."""
        return any(part.cls.recurrent for layer in self.layers for part in layer.mixers)


def plan(spec: ModelSpec) -> Stack:
    """Read a spec to the end. PatternError and SpecError name place, value, what is allowed, and the nearest."""
    spec = _native(spec)
    given = dict(spec.blocks) or default_blocks()
    pattern = parse(spec.pattern, names=list(given))
    reader = _Reader(spec, given)
    read = {name: reader.block(name) for name in (spec.blocks or pattern.names)}  # a mistake in an unused one is one
    used = {name: read[name] for name in pattern.names}
    stack = Stack(spec, tuple(reader.layer(place) for place in pattern.places()))
    rope = not stack.recurrent
    kinds = {layer.name: layer for layer in stack.layers}
    settled = {name: _settle_rope(layer, rope) for name, layer in kinds.items()}
    layers = tuple(settled[layer.name] for layer in stack.layers)
    _check_shared(layers, spec.d_model)
    return Stack(_resolved(spec, pattern, used, reader, rope), layers)


def default_blocks() -> dict[str, Any]:
    """The default alphabet: every registered mixer that has a letter."""
    blocks: dict[str, Any] = {}
    for entry in mixers.listing():
        if entry.part is not None and entry.part.letter:
            blocks.setdefault(entry.part.letter, {"mixer": {"type": entry.name}})
    return blocks


def _native(spec: ModelSpec) -> ModelSpec:
    """The spec with its pattern in our own language."""
    if spec.notation is None:
        if not isinstance(spec.pattern, str):
            raise SpecError(f'pattern: {spec.pattern!r}; it must be text such as "(M3A)2"')
        return spec
    pattern, blocks = notation.read(spec.pattern, spec.notation, spec.blocks)
    return replace(spec, pattern=pattern, blocks={**blocks, **spec.blocks}, notation=None)


class _Reader:
    """Reads blocks and places of one spec; equal places give the same LayerPlan."""

    def __init__(self, spec: ModelSpec, given: Mapping[str, Any]):
        self.spec = spec
        self.given = given
        self.block = functools.cache(self._block)
        self.mlp = self.part(mlps, "mlp", spec.mlp)
        self._layers: dict[str, LayerPlan] = {}

    def layer(self, place: Place) -> LayerPlan:
        """The plan of one place of the pattern."""
        name = str(place)
        if name not in self._layers:
            self._layers[name] = self._parallel(place) if isinstance(place, Parallel) else self._single(place)
        return self._layers[name]

    def _block(self, name: str, override: str = "") -> tuple[Part | None, Part | None]:
        """The mixer and MLP of a defined block."""
        given, path = self.given[name], f"blocks.{name}"
        require_known(given, ["mixer", "mlp"], f"{path}.")
        mixer = self.part(mixers, f"{path}.mixer", given.get("mixer", NONE))
        mlp = self.part(mlps, f"{path}.mlp", given["mlp"]) if "mlp" in given else self.mlp
        if mixer is None and mlp is None:
            raise SpecError(f"{path}: neither mixer nor mlp; a block needs one of them")
        return mixer, mlp

    def _single(self, block: Block) -> LayerPlan:
        mixer, mlp = self._overridden(block)
        return LayerPlan(str(block), (mixer,) if mixer else (), mlp, self.spec.combine, block.label)

    def _overridden(self, block: Block) -> tuple[Part | None, Part | None]:
        """A block's parts, with the settings that this occurrence changes."""
        path = f"pattern.{block.name}"
        if block.name == MLP_ALONE:
            if self.mlp is None:
                raise SpecError("pattern: '-' is an MLP alone, but the spec says mlp: none")
            return None, self._changed(self.mlp, block.override, path)
        mixer, mlp = self.block(block.name)
        change = dict(block.override)
        if "mlp" in change:
            mlp = self.part(mlps, f"{path}.mlp", change.pop("mlp"))
        if not change:
            return mixer, mlp
        if mixer is None:
            raise SpecError(f"{path}.{next(iter(change))}: the block has no mixer; only mlp can be overridden here")
        return self._changed(mixer, change, path), mlp

    def _parallel(self, place: Parallel) -> LayerPlan:
        parts = [self._overridden(block) for block in place.members]
        if any(mixer is None for mixer, _ in parts):
            raise SpecError(f"pattern: {place}: every member of < | > needs a mixer")
        change = dict(place.override)
        combine = checks.choice(f"pattern.{place}.combine", change.pop("combine", self.spec.combine), COMBINATIONS)
        mlp = parts[0][1]
        if "mlp" in change:
            mlp = self.part(mlps, f"pattern.{place}.mlp", change.pop("mlp"))
        elif any(other != mlp for _, other in parts):
            raise SpecError(
                f"pattern: {place}: its members have different MLPs; give them one, or write <..>{{mlp: ..}}"
            )
        require_known(change, ["combine", "mlp"], f"pattern.{place}.")
        return LayerPlan(str(place), tuple(mixer for mixer, _ in parts), mlp, combine, place.label)

    def part(self, registry: Registry, path: str, given: Any) -> Part | None:
        """A part from {type: name, field: value, ...}, or from its name alone; None for none."""
        if given is None or given == NONE:
            return None
        given = {"type": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            raise SpecError(
                f"{path}: {given!r}; it must be {{type: name, ...}} with one of {', '.join(registry.names())}"
            )
        if given["type"] == NONE:
            return None
        part = Part(given["type"], None, registry)
        try:
            config_class = part.cls.Config
        except SpecError as error:
            raise SpecError(f"{path}.type: {error}") from error
        config = _config(config_class, {key: value for key, value in given.items() if key != "type"}, f"{path}.")
        return self._settled(replace(part, config=config), f"{path}.")

    def _changed(self, part: Part, change: Mapping[str, Any], path: str) -> Part:
        values = {**dataclasses.asdict(part.config), **_checked(type(part.config), change, f"{path}.")}
        return self._settled(replace(part, config=type(part.config)(**values)), f"{path}.")

    def _settled(self, part: Part, path: str) -> Part:
        """The part with its config's defaults filled in for this width; rope may stay open until all is known."""
        open_rope = dataclasses.asdict(part.config).get("rope", False) is None
        try:
            config = part.config.resolve(self.spec.d_model)
        except UnsupportedError:
            raise
        except ValueError as error:
            raise SpecError(f"{path}{error}") from error
        return replace(part, config=replace(config, rope=None) if open_rope else config)


def _config(cls: type, given: Mapping[str, Any], path: str) -> Any:
    try:
        return cls(**_checked(cls, given, path))
    except TypeError as error:
        raise SpecError(f"{path.rstrip('.')}: {error}") from error


def _checked(cls: type, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The given fields of a config class, each of the declared type."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    require_known(given, names, path)
    return {name: _typed(path + name, value, hints[name]) for name, value in given.items()}


def _typed(path: str, value: Any, hint: Any) -> Any:
    """value, if it is of the annotated type: int, float, bool, str, a list of them, or None where allowed."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        return checks.flag(path, value)
    if kind is int:
        return checks.integer(path, value)
    if kind is float:
        return checks.real(path, value)
    if kind is str and not isinstance(value, str):
        raise SpecError(f"{path}: {value!r} is not text")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{path}: {value!r} is not a list")
        return tuple(_typed(f"{path}.{i}", item, typing.get_args(kind)[0]) for i, item in enumerate(value))
    return value


def _settle_rope(layer: LayerPlan, rope: bool) -> LayerPlan:
    return replace(layer, mixers=tuple(_with_rope(part, rope) for part in layer.mixers))


def _with_rope(part: Part, rope: bool) -> Part:
    """Where the spec does not say: rotary positions only in a stack without a recurrent mixer."""
    if dataclasses.asdict(part.config).get("rope", False) is None:
        return replace(part, config=replace(part.config, rope=rope))
    return part


def _check_shared(layers: tuple[LayerPlan, ...], d_model: int) -> None:
    """One label is one set of weights: the same parts everywhere, settings that change no shape apart."""
    first: dict[str, LayerPlan] = {}
    for layer in layers:
        if layer.label in RESERVED_LABELS:
            raise SpecError(f"pattern: {layer.name}: the label {layer.label!r} is a word of PyTorch's; choose another")
        other = first.setdefault(layer.label, layer) if layer.label else layer
        if layer != other and _weights(layer, d_model) != _weights(other, d_model):
            raise SpecError(
                f"pattern: {layer.name} and {other.name} share the weights {layer.label!r} but differ in their shapes, "
                "initial values or MLP; an override on a shared place may change none of these"
            )


def _weights(layer: LayerPlan, d_model: int) -> tuple:
    """Everything about a layer's weights: its parts, the name and shape of each parameter, how they begin."""
    parts = [*layer.mixers, *([layer.mlp] if layer.mlp else [])]
    first = [{name: dataclasses.asdict(part.config)[name] for name in part.cls.initial_fields} for part in layer.mixers]
    return layer.combine, layer.mlp, first, tuple((part.type, _shapes(part, d_model)) for part in parts)


@functools.lru_cache(maxsize=256)
def _shapes(part: Part, d_model: int) -> tuple:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = part.cls(part.config, d_model)
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _resolved(spec: ModelSpec, pattern: Pattern, used: dict, reader: _Reader, rope: bool) -> ModelSpec:
    """The spec that says everything: canonical pattern, the blocks in use with every field, the MLP in full."""
    blocks = {}
    for name, (mixer, mlp) in used.items():
        mixer = mixer and _with_rope(mixer, rope)
        blocks[name] = {"mixer": mixer.to_dict() if mixer else NONE, "mlp": mlp.to_dict() if mlp else NONE}
    mlp = reader.mlp.to_dict() if reader.mlp else NONE
    return replace(spec, pattern=str(pattern), blocks=blocks, mlp=mlp)
