"""Axes of a study: each is a list of values of one setting, and the arms are their product.

    ratio:     {attention: [0, 1, 2, 3]}              so many attention layers in a stack of the same depth
    placement: {placement: [even, middle, front]}     where they stand
    state:     {blocks.M.mixer.d_state: [16, 64]}     any path of the model spec
    kind:      {pattern: {LTI: S2, selective: M2}}    names for values that are long

`ratio` may say `place:`, `block:` and `rest:` beside its counts: the placement (default even), and the names of the
blocks with attention and without, where the baseline leaves a choice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridlm import checks
from hybridlm.ablate.placement import indices, placement
from hybridlm.compose.cost import keeps_keys
from hybridlm.compose.pattern import MLP_ALONE, Block, parse
from hybridlm.compose.plan import default_blocks, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.compose.tree import compact
from hybridlm.errors import SpecError

ATTENTION, PLACEMENT = "attention", "placement"
MAX_ARMS = 1000
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    name:   its key in the file.
    path:   attention, placement, or a dotted path of the spec.
    labels: its coordinates: the values themselves, or their names.
    values: what the path is set to.
    place:  of attention: the placement of all counts, unless another axis says it.
    block:  of attention: the block with attention; None: the only one.
    rest:   of attention: the block without.
    """

    name: str
    path: str
    labels: tuple
    values: tuple
    place: str = "even"
    block: str | None = None
    rest: str | None = None


def read_axis(name: str, given: Any) -> Axis:
    """An axis from what the file says under its name. SpecError: what is wrong, from the axis's key on."""
    if not NAME.fullmatch(name):
        raise SpecError(f"{name!r} cannot name an axis; use a letter, then letters, digits, _ . + or -")
    more = ("place", "block", "rest") if isinstance(given, Mapping) and ATTENTION in given else ()
    paths = [path for path in given if path not in more] if isinstance(given, Mapping) else []
    if len(paths) != 1:
        found = f"{len(paths)} paths ({', '.join(paths)})" if paths else f"{given!r}"
        raise SpecError(f"{found}; an axis is one path and its values, such as {{blocks.M.mixer.d_state: [16, 64]}}")
    path, values = paths[0], given[paths[0]]
    named = isinstance(values, Mapping)
    if not isinstance(values, list | tuple | Mapping) or len(values) < 2:
        raise SpecError(f"{path}: {values!r}; an axis needs a list of two values or more")
    labels, values = tuple(values), tuple(values.values() if named else values)
    for i, value in enumerate(values):
        _check_value(path, f"{path}.{labels[i] if named else i}", value, named)
        if value in values[:i]:
            raise SpecError(f"{path}.{i}: {value!r} stands there twice; each value makes an arm")
    axis = Axis(name=name, path=path, labels=labels, values=values)
    return replace(axis, **{key: _option(key, given[key]) for key in more if key in given})


def _check_value(path: str, place: str, value: Any, named: bool) -> None:
    if path == ATTENTION:
        checks.whole(place, value, low=0, high=4096)
    elif path == PLACEMENT:
        try:
            placement(value)
        except SpecError as error:
            raise SpecError(f"{place}: {error}") from error
    elif isinstance(value, Mapping | list | tuple) and not named:
        raise SpecError(f"{place}: {value!r} is too long for an arm's name; give names: {{{path}: {{a: .., b: ..}}}}")


def _option(key: str, value: Any) -> str:
    if key == "place":
        placement(value)
    elif not isinstance(value, str):
        raise SpecError(f"{key}: {value!r}; it must be the name of a block")
    return value


def points(axes: Sequence[Axis]) -> Iterator[dict[str, int]]:
    """{axis: which of its values} of every arm; the first axis varies slowest. SpecError: more than MAX_ARMS."""
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_ARMS:
        raise SpecError(f"axes: {count:,} arms; a study has at most {MAX_ARMS:,}. Take values out")
    for chosen in itertools.product(*(range(len(axis.values)) for axis in axes)):
        yield {axis.name: i for axis, i in zip(axes, chosen, strict=True)}


def changes_at(axes: Sequence[Axis], point: Mapping[str, int]) -> dict[str, Any]:
    """{path: value} of the plain axes at a point, attention and placement left out."""
    plain = [axis for axis in axes if axis.path not in (ATTENTION, PLACEMENT)]
    return {axis.path: axis.values[point[axis.name]] for axis in plain}


def stack_at(axes: Sequence[Axis], point: Mapping[str, int], spec: ModelSpec) -> str | None:
    """The pattern that attention and placement ask for at a point, of the spec with everything else changed.

    None: there is no such axis. SpecError: the count does not fit the depth, or the blocks are not clear.
    """
    by_path = {axis.path: axis for axis in axes if axis.path in (ATTENTION, PLACEMENT)}
    if not by_path:
        return None
    counts = by_path.get(ATTENTION) or Axis(name="", path=ATTENTION, labels=(), values=())
    layers = _plain_layers(spec)
    attention, rest = _blocks(spec, layers, counts)
    count = counts.values[point[counts.name]] if counts.values else layers.count(attention)
    if count > len(layers):
        raise SpecError(f"axes.{counts.name}: {count} attention layers, but the stack has {len(layers)}")
    if not counts.values and not count:
        raise SpecError(
            f"axes.{by_path[PLACEMENT].name}: the baseline {spec.pattern} has no attention to place; "
            "give it some, or add an axis {attention: [1, 2]}"
        )
    where = by_path[PLACEMENT].values[point[by_path[PLACEMENT].name]] if PLACEMENT in by_path else counts.place
    places = set(indices(where, len(layers), count))
    return compact([attention if i in places else rest for i in range(len(layers))])


def _plain_layers(spec: ModelSpec) -> list[str]:
    """The names of the stack's blocks, which must be all that its places say."""
    pattern = parse(spec.pattern, names=list(spec.blocks or default_blocks()))
    for place in pattern.places():
        if not isinstance(place, Block) or place.label or place.override or place.name == MLP_ALONE:
            raise SpecError(
                f"baseline: pattern: {place}: an axis of attention or placement makes the pattern anew, from plain "
                "blocks; give the block a name of its own instead"
            )
    return [place.name for place in pattern.places()]


def _blocks(spec: ModelSpec, layers: Sequence[str], axis: Axis) -> tuple[str, str]:
    """The names of the block with attention and of the one without."""
    names = list(dict.fromkeys([*layers, *(spec.blocks or ["A"])]))
    holds = {name: _keeps_keys(spec, name) for name in names}
    found = []
    for key, said, wanted in (("block", axis.block, True), ("rest", axis.rest, False)):
        fit = [name for name in names if holds[name] is wanted]
        used = [name for name in fit if name in layers] or fit
        if said is not None and said not in names:
            raise SpecError(f"axes.{axis.name}.{key}: there is no block {said!r}; defined: {', '.join(names)}")
        if said is None and len(used) != 1:
            kind = "with attention" if wanted else "without attention"
            none = f"no block {kind}" if not used else f"several blocks {kind} ({', '.join(used)})"
            raise SpecError(f"axes.{axis.name or PLACEMENT}: the baseline has {none}; say {key}: and its name")
        found.append(said or used[0])
    return found[0], found[1]


def _keeps_keys(spec: ModelSpec, name: str) -> bool:
    mixers = plan(replace(spec, pattern=f"[{name}]")).layers[0].mixers
    return any(keeps_keys(mixer.cost()) for mixer in mixers)
