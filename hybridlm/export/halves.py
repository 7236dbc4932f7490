"""A stack as others count it: halves of layers, each a norm and what reads it, and the layers that two of them make.

`A` with its MLP is two halves, `A` with `mlp: none` one, `-` the other one: "A-" and "A" are the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hybridlm.compose.options import Options
from hybridlm.compose.part import Part
from hybridlm.compose.plan import Stack

WITHOUT_EFFECT = {"chunk", "dt_min", "dt_max", "balance", "bias_rate"}
"""Fields that say how fast a layer is, or how it starts and trains, and not what it computes."""
KNOWN = "; known there: "
"""Of a misfit that is a whole layer, not a setting of one."""


@dataclass(frozen=True)
class Half:
    """x + part(norm(x)).

    place: its text in the pattern. index: of its block. prefix, norm: where its weights are, "blocks.3.mixer." and
    "blocks.3.norm.". Mixers side by side are halves with one index and one norm.
    """

    place: str
    index: int
    part: Part
    prefix: str
    norm: str

    @property
    def type(self) -> str:
        """The registry name of its mixer or MLP."""
        return self.part.type

    @property
    def config(self) -> Any:
        """The resolved config of its mixer or MLP."""
        return self.part.config

    @property
    def mixes(self) -> bool:
        """Whether it is a mixer."""
        return self.norm.endswith(".norm.")


def mixer_halves(stack: Stack) -> list[Half]:
    """The first halves."""
    return [half for half in halves(stack) if half.mixes]


def mlp_halves(stack: Stack) -> list[Half]:
    """The second halves."""
    return [half for half in halves(stack) if not half.mixes]


def halves(stack: Stack) -> list[Half]:
    """All halves from the bottom up."""
    found = []
    for i, layer in enumerate(stack.layers):
        for n, part in enumerate(layer.mixers):
            inner = f"mixers.{n}." if len(layer.mixers) > 1 else ""
            found.append(Half(layer.name, i, part, f"blocks.{i}.mixer.{inner}", f"blocks.{i}.norm."))
        found += [Half(layer.name, i, part, f"blocks.{i}.mlp.", f"blocks.{i}.mlp_norm.") for part in layer.mlps]
    return found


def of_type(halves: Iterable[Half], kind: str) -> list[Half]:
    """The halves of one registry name."""
    return [half for half in halves if half.type == kind]


def pairs(stack: Stack) -> list[tuple[Half, Half]]:
    """Layers of a mixer and an MLP, of a stack of which `unpaired` says nothing."""
    return [(mixers[0], mlp) for mixers, mlp in layers(stack)]


def layers(stack: Stack) -> list[tuple[list[Half], Half]]:
    """Layers of mixers side by side and an MLP, of a stack of which `unpaired` says nothing."""
    found: list[tuple[list[Half], Half]] = []
    mixers: list[Half] = []
    for half in halves(stack):
        if half.mixes:
            mixers.append(half)
        else:
            found.append((mixers, half))
            mixers = []
    return found


# ---------------------------------------------------------------------------------------------- what does not fit, said
def unpaired(stack: Stack) -> list[str]:
    """Where a mixer is not followed by an MLP, or an MLP not preceded by a mixer."""
    found, said, before = halves(stack), [], None
    for half in found:
        if half.mixes and before is not None and before.index != half.index:
            said.append(f"{before.place}: no MLP follows the mixer, and every layer has one there")
        if not half.mixes and before is None:
            said.append(f"{half.place}: an MLP without a mixer before it, and every layer has one there")
        before = half if half.mixes else None
    if before is not None:
        said.append(f"{before.place}: no MLP follows the mixer, and every layer has one there")
    return once(said)


def mixed(halves: Iterable[Half], but: Iterable[str] = ()) -> list[str]:
    """Fields of which halves of one type have several values, where all layers share one setting. but: those may."""
    by_type: dict[str, list[Half]] = {}
    for half in halves:
        by_type.setdefault(half.type, []).append(half)
    said = []
    for kind, of_kind in by_type.items():
        settings = [half.part.to_dict() for half in of_kind]
        for name in settings[0].keys() - WITHOUT_EFFECT - set(but):
            values = once(str(setting[name]) for setting in settings)
            if len(values) > 1:
                said.append(f"{kind}.{name}: {', '.join(values)}; every layer has the same one there")
    return sorted(said)


def plain(stack: Stack, *, mixers: int = 1) -> list[str]:
    """What no family of others has: shared weights, sandwiched norms, other inputs and outputs, many mixers a layer."""
    said = []
    for layer in stack.layers:
        if layer.label is not None:
            said.append(f"{layer.name}: weights that are shared between depths")
        if layer.options != Options():
            said.append(f"{layer.name}: {', '.join(layer.options.said(Options()))}, which no layer has there")
        if len(layer.mixers) > mixers:
            said.append(f"{layer.name}: {len(layer.mixers)} mixers side by side; at most {mixers} there")
    return once(said)


def outer(stack: Stack, *, fp32: bool = False) -> list[str]:
    """What is not token ids in, RMSNorm, and logits of the next token out. fp32: a stream in float32 can be said."""
    spec = stack.spec
    said = [] if spec.is_language_model else [f"embed: {spec.embed}, head: {spec.head}; a language model is needed"]
    if spec.norm != "rmsnorm":
        said.append(f"norm: {spec.norm}; only rmsnorm is known there")
    if spec.residual_in_fp32 and not fp32:
        said.append("residual_in_fp32: true; the residual stream has the dtype of the weights there")
    return said


def allowed(halves: Iterable[Half], types: Iterable[str], what: str) -> list[str]:
    """Halves of another type than these. what: "mixer" or "MLP"."""
    known = list(types)
    wrong = [half for half in halves if half.type not in known]
    return once(f"{half.place}: {what} {half.type}{KNOWN}{', '.join(known) or 'none'}" for half in wrong)


def needed(halves: Iterable[Half], test: Callable[[Any], bool], said: str) -> list[str]:
    """`said`, after their places, of halves whose config fails the test."""
    return once(f"{half.place}: {half.type}.{said}" for half in halves if not test(half.config))


def present(halves: list[Half], kind: str, why: str) -> list[str]:
    """That there is none of a kind, where a stack has to have one."""
    return [] if halves else [f"pattern: no {kind} in it; {why}"]


def once(said: Iterable[str]) -> list[str]:
    """Without repetitions, in order."""
    return list(dict.fromkeys(said))
