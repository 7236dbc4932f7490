"""From a spec to its layers: every letter looked up, every default filled in, every number checked. No tensor yet.

`plan(spec)` is the one reading of a spec. `build` makes modules of it, `cost` adds it up, and its `spec` is the
resolved one, which says everything explicitly and is what checkpoints store.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hybridlm import checks
from hybridlm.compose import notation
from hybridlm.compose.fields import checked, config_from
from hybridlm.compose.options import WORDS, Options, Ranks, without_options
from hybridlm.compose.part import Part
from hybridlm.compose.pattern import MLP_ALONE, Block, Parallel, Pattern, Place, parse
from hybridlm.compose.spec import COMBINATIONS, ModelSpec
from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.registry import Registry, mixers, mlps

NONE = "none"
RESERVED_LABELS = frozenset(dir(torch.nn.ModuleDict()))  # model.shared is one, and refuses these as keys


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the stack.

    name:    the text of its place in the pattern.
    mixers:  none (an MLP alone), one, or several side by side.
    mlp:     what follows, or None.
    combine: how several mixers are joined.
    label:   the name of the weights that it shares, or None.
    options: what it does besides.
    """

    name: str
    mixers: tuple[Part, ...]
    mlp: Part | None
    combine: str
    label: str | None
    options: Options

    @property
    def mlps(self) -> tuple[Part, ...]:
        """The MLP, if there is one."""
        return () if self.mlp is None else (self.mlp,)


@dataclass(frozen=True)
class Stack:
    """A planned model: its resolved spec and its layers from the bottom up."""

    spec: ModelSpec
    layers: tuple[LayerPlan, ...]

    @property
    def recurrent(self) -> bool:
        """Whether some mixer knows the order of the past by itself, so that attention needs no positions."""
        return any(part.cls.knows_order(part.config) for layer in self.layers for part in layer.mixers)


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
    _check_shared(layers)
    _check_next(layers)
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


Definition = tuple[Part | None, Part | None, Options]  # of a block: its mixer, its MLP, and its options


class _Reader:
    """Reads blocks and places of one spec; equal places give the same LayerPlan."""

    def __init__(self, spec: ModelSpec, given: Mapping[str, Any]):
        self.spec = spec
        self.given = given
        self.block = functools.cache(self._block)
        self.mlp = self.part(mlps, "mlp", spec.mlp)
        self.plain = Options(norms=spec.norms)
        self._layers: dict[str, LayerPlan] = {}

    def layer(self, place: Place) -> LayerPlan:
        """The plan of one place of the pattern."""
        name = str(place)
        if name not in self._layers:
            self._layers[name] = self._parallel(place) if isinstance(place, Parallel) else self._single(place)
        return self._layers[name]

    def _block(self, name: str) -> Definition:
        """What is defined under a name."""
        given, path = self.given[name], f"blocks.{name}."
        checks.known(given, ["mixer", "mlp", *WORDS], path)
        options = self.plain.saying(given, path)
        mixer = self.part(mixers, f"{path}mixer", given.get("mixer", NONE), options.reads(self.spec.d_model))
        mlp = self.part(mlps, f"{path}mlp", given["mlp"]) if "mlp" in given else self.mlp
        if mixer is None and mlp is None:
            raise SpecError(f"blocks.{name}: neither mixer nor mlp; a block needs one of them")
        if mixer is None and options.input != "residual":
            raise SpecError(f"{path}input: {options.input} is for a mixer, and the block has none")
        if mixer is not None and mixer.reads != mixer.writes:
            _check_narrow(mixer, f"{path}input: {options.input}")
        return mixer, mlp, options

    def _single(self, block: Block) -> LayerPlan:
        mixer, mlp, options = self._overridden(block)
        return self._layer(block, (mixer,) if mixer else (), mlp, self.spec.combine, options)

    def _overridden(self, block: Block) -> Definition:
        """A block's parts and options, with the settings that this occurrence changes."""
        path = f"pattern.{block.name}."
        if block.name == MLP_ALONE:
            if self.mlp is None:
                raise SpecError("pattern: '-' is an MLP alone, but the spec says mlp: none")
            options, change = _said(self.plain, block.override, path)
            return None, self._changed(self.mlp, change, path), options
        mixer, mlp, options = self.block(block.name)
        options, change = _said(options, block.override, path)
        if "mlp" in change:
            mlp = self.part(mlps, f"{path}mlp", change.pop("mlp"))
        if not change:
            return mixer, mlp, options
        if mixer is None:
            raise SpecError(f"{path}{next(iter(change))}: the block has no mixer; only mlp and options change here")
        return self._changed(mixer, change, path, ["mlp"]), mlp, options

    def _parallel(self, place: Parallel) -> LayerPlan:
        members, path = [self._overridden(block) for block in place.members], f"pattern.{place}."
        if any(mixer is None for mixer, *_ in members):
            raise SpecError(f"pattern: {place}: every member of < | > needs a mixer")
        _, mlp, options = members[0]
        options, change = _said(options, place.override, path)
        combine = checks.choice(f"{path}combine", change.pop("combine", self.spec.combine), COMBINATIONS)
        for word in [word for word in WORDS if word not in place.override]:
            if any(getattr(other, word) != getattr(options, word) for *_, other in members):
                raise SpecError(f"pattern: {place}: its members differ in {word}; say it once, behind the >")
        if "mlp" in change:
            mlp = self.part(mlps, f"{path}mlp", change.pop("mlp"))
        elif any(other != mlp for _, other, _ in members):
            raise SpecError(
                f"pattern: {place}: its members have different MLPs; give them one, or write <..>{{mlp: ..}}"
            )
        checks.known(change, ["combine", "mlp", *WORDS], path)
        return self._layer(place, tuple(mixer for mixer, *_ in members), mlp, combine, options)

    def _layer(
        self, place: Place, found: tuple[Part, ...], mlp: Part | None, combine: str, options: Options
    ) -> LayerPlan:
        return _corrected(LayerPlan(str(place), found, mlp, combine, place.label, options))

    def part(self, registry: Registry, path: str, given: Any, reads: int | None = None) -> Part | None:
        """A part from {type: name, field: value, ...}, or from its name alone; None for none. reads: if not d_model."""
        if given is None or given == NONE:
            return None
        given = {"type": given} if isinstance(given, str) else given
        if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
            raise SpecError(
                f"{path}: {given!r}; it must be {{type: name, ...}} with one of {', '.join(registry.names())}"
            )
        if given["type"] == NONE:
            return None
        part = Part(given["type"], None, registry, reads or self.spec.d_model, self.spec.d_model)
        try:
            config_class = part.cls.Config
        except SpecError as error:
            raise SpecError(f"{path}.type: {error}") from error
        said = checked(config_class, {key: value for key, value in given.items() if key != "type"}, f"{path}.")
        return self._settled(part, config_class, said, f"{path}.")

    def _changed(self, part: Part, change: Mapping[str, Any], path: str, more: list[str] | None = None) -> Part:
        checks.known(change, [*dataclasses.asdict(part.config), *(more or []), *WORDS], path)
        said = {**part.said, **checked(type(part.config), change, path)}
        return self._settled(part, type(part.config), said, path)

    def _settled(self, part: Part, config_class: type, said: Mapping[str, Any], path: str) -> Part:
        """The part with its config's defaults filled in for this width; rope may stay open until all is known."""
        config = config_from(config_class, said, path)
        open_rope = dataclasses.asdict(config).get("rope", False) is None
        try:
            config = config.resolve(part.reads)
        except UnsupportedError:
            raise
        except ValueError as error:
            raise SpecError(f"{path}{error}") from error
        return replace(part, config=replace(config, rope=None) if open_rope else config, said=said)

    def explicit(self, block: Block) -> Block:
        """The block with an override that says what followed from it, too: the resolved spec says every default."""
        half = 1 if block.name == MLP_ALONE else 0
        before, after = (self._overridden(place)[half] for place in (Block(name=block.name), block))
        if before == after:
            return block
        old, new = dataclasses.asdict(before.config), dataclasses.asdict(after.config)
        followed = {name: value for name, value in new.items() if value != old[name] and name not in block.override}
        return replace(block, override={**block.override, **followed})


def _said(options: Options, override: Mapping[str, Any], path: str) -> tuple[Options, dict[str, Any]]:
    """The options as a place's override changes them, and the rest of it."""
    if "input" in override:
        raise SpecError(f"{path}input: the sizes of a mixer follow from it; say it where the block is defined")
    return options.saying(override, path), without_options(override)


def _check_narrow(mixer: Part, path: str) -> None:
    try:
        mixer.shapes()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _settle_rope(layer: LayerPlan, rope: bool) -> LayerPlan:
    return replace(layer, mixers=tuple(_with_rope(part, rope) for part in layer.mixers))


def _with_rope(part: Part, rope: bool) -> Part:
    """Where the spec does not say: rotary positions only in a stack without a recurrent mixer."""
    if dataclasses.asdict(part.config).get("rope", False) is None:
        return replace(part, config=replace(part.config, rope=rope))
    return part


def _check_shared(layers: tuple[LayerPlan, ...]) -> None:
    """One label is one set of weights: the same parts everywhere, settings that change no shape apart."""
    first: dict[str, LayerPlan] = {}
    for layer in layers:
        if layer.label in RESERVED_LABELS:
            raise SpecError(f"pattern: {layer.name}: the label {layer.label!r} is a word of PyTorch's; choose another")
        other = first.setdefault(layer.label, layer) if layer.label else layer
        if layer != other and _weights(layer) != _weights(other):
            raise SpecError(
                f"pattern: {layer.name} and {other.name} share the weights {layer.label!r} but differ in their shapes, "
                "initial values or MLP; an override on a shared place may change none of these"
            )


def _weights(layer: LayerPlan) -> tuple:
    """Everything about a layer's weights: its parts, the name and shape of each parameter, how they begin."""
    first = [{name: dataclasses.asdict(part.config)[name] for name in part.cls.initial_fields} for part in layer.mixers]
    shapes = tuple((part.type, part.shapes()) for part in (*layer.mixers, *layer.mlps))
    return layer.combine, layer.mlp, layer.options.norms, layer.options.input, first, shapes


def _check_next(layers: tuple[LayerPlan, ...]) -> None:
    """What goes to the next layer's mixer needs one there."""
    for i, layer in enumerate(layers):
        if layer.options.output == "next_mixer" and not (i + 1 < len(layers) and layers[i + 1].mixers):
            after = f"{layers[i + 1].name} has none" if i + 1 < len(layers) else "there is none"
            raise SpecError(
                f"pattern: {layer.name}, layer {i}: output: next_mixer is for the mixer of the next layer; {after}"
            )


def _corrected(layer: LayerPlan) -> LayerPlan:
    """The layer with the ranks of its corrections settled: a number alone is for whatever can be corrected."""
    given = layer.options.low_rank
    if not given:
        return layer
    name = f"pattern: {layer.name}: low_rank"
    if layer.label is None:
        raise SpecError(f"{name}: it corrects weights that places share; give the block a label, as in A@shared")
    able = {
        "mixer": any(part.readers() for part in layer.mixers),
        "mlp": any(part.readers() for part in layer.mlps),
    }
    ranks = given if isinstance(given, Ranks) else Ranks(**{half: given * fact for half, fact in able.items()})
    for half in [half for half, fact in able.items() if getattr(ranks, half) and not fact]:
        raise SpecError(f"{name}.{half}: it has no linear layer that reads; leave it out")
    if ranks == Ranks():
        raise SpecError(f"{name}: neither its mixer nor its MLP has a linear layer that reads; leave it out")
    return replace(layer, options=replace(layer.options, low_rank=ranks))


def _resolved(spec: ModelSpec, pattern: Pattern, used: dict, reader: _Reader, rope: bool) -> ModelSpec:
    """The spec that says everything: canonical pattern, the blocks in use with every field, the MLP in full."""
    blocks = {}
    for name, (mixer, mlp, options) in used.items():
        mixer = mixer and _with_rope(mixer, rope)
        blocks[name] = {"mixer": mixer.to_dict() if mixer else NONE, "mlp": mlp.to_dict() if mlp else NONE}
        blocks[name] |= options.said(reader.plain)
    mlp = reader.mlp.to_dict() if reader.mlp else NONE
    pattern = parse(str(pattern.map(reader.explicit)), names=list(used))  # its limits hold here too
    return replace(spec, pattern=str(pattern), blocks=blocks, mlp=mlp)
