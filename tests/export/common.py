"""What the tests of export share: random models in every spelling, random weights, and what is known of each family."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from random import Random
from typing import Any

import torch

import hybridlm as hl
from hybridlm.export.family import FAMILIES

D, WORDS = 32, 97
SHALLOW = 2  # of DEEP models a family, in the default tier
DEEP = 20


@dataclass(frozen=True)
class Drawn:
    """A model as halves of layers, before it is spelled.

    halves:  letters of mixers, "<M|A>", each with "@label" or not, and letters of MLPs.
    mixers:  what the letters mean. mlps: the same of MLPs; "-" is what the spec calls `mlp`.
    rest:    further keys of the spec.
    """

    halves: tuple[str, ...]
    mixers: Mapping[str, Mapping[str, Any]]
    mlps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)

    def saying(self, **keys: Any) -> Drawn:
        """With other keys of the spec."""
        return replace(self, rest={**self.rest, **keys})

    def mixing(self, letter: str, **fields: Any) -> Drawn:
        """With other fields of a mixer, or of another type."""
        return replace(self, mixers={**self.mixers, letter: {**self.mixers.get(letter, {}), **fields}})

    def feeding(self, letter: str = "-", **fields: Any) -> Drawn:
        """With other fields of an MLP."""
        return replace(self, mlps={**self.mlps, letter: {**self.mlps.get(letter, {}), **fields}})

    def stacking(self, *halves: str) -> Drawn:
        """With other halves."""
        return replace(self, halves=halves)


@dataclass(frozen=True)
class Sample:
    """What is tried with a family.

    fit:     a random model that fits, of a family that is written.
    spoiled: {word of the refusal: what makes of a model that fits one that does not}, beside SPOILED.
    theirs:  random fields of their config, for a checkpoint that transformers makes.
    unread:  (field, value) of a config.json that is to be refused by that name, or by the name of a field in it.
    """

    fit: Callable[[Random], Drawn] | None
    spoiled: Mapping[str, Callable[[Drawn, Random], Drawn]]
    theirs: Callable[[Random], dict[str, Any]]
    unread: tuple[tuple[str, Any], ...]


def sample(family: str) -> Sample:
    """What is tried with a family: tests/export/samples."""
    return importlib.import_module(f"tests.export.samples.{family}").SAMPLE


def draws(count: int = DEEP, families: tuple[str, ...] = FAMILIES) -> list[Any]:
    """(family, number) for as many models of each; those behind the first few are deep."""
    import pytest

    deep = [() if number < SHALLOW else (pytest.mark.deep,) for number in range(count)]
    return [pytest.param(family, i, marks=marks) for family in families for i, marks in enumerate(deep)]


# ------------------------------------------------------------------------------------------------------------- spelling
def spelled(drawn: Drawn, draw: Random) -> dict[str, Any]:
    """One of the ways to write a model down: MLPs of their own or with their mixer, names, overrides, counts."""
    names = {letter: draw.choice([letter, f"[{letter}-layer]"]) for letter in drawn.mixers}
    carried = {letter: draw.choice([True, False]) and "-" in drawn.mlps for letter in drawn.mixers}
    texts, halves = [], list(drawn.halves)
    while halves:
        half = halves.pop(0)
        if half in drawn.mlps:
            texts.append("-" if half == "-" else f"[{half}-mlp]")
            continue
        mixer, label = half.partition("@")[0], half[half.find("@") :] if "@" in half else ""
        letters = re.findall("[A-Za-z]", mixer)
        mlp = drawn.mlps.get(halves[0]) if halves else None
        whole = mlp is not None and not label and draw.random() < 0.5
        if whole:
            halves.pop(0)
        override = _mlp(mlp if whole else None, [carried[letter] for letter in letters], drawn)
        if len(letters) == 1 and draw.random() < 0.3:
            said = draw.choice([name for name in drawn.mixers[letters[0]] if name != "type"])
            override[said] = drawn.mixers[letters[0]][said]
        texts.append("".join(names.get(sign, sign) for sign in mixer) + label)
        texts[-1] += flow(override) if override and not label else ""
    blocks = {
        names[letter].strip("[]"): {"mixer": dict(mixer), "mlp": dict(drawn.mlps["-"]) if carried[letter] else "none"}
        for letter, mixer in drawn.mixers.items()
    }
    blocks |= {f"{letter}-mlp": {"mlp": dict(mlp)} for letter, mlp in drawn.mlps.items() if letter != "-"}
    runs = [(text, len(list(run))) for text, run in groupby(texts)]
    pattern = draw.choice(["", " "]).join(text if count == 1 else f"({text}){count}" for text, count in runs)
    return {"pattern": pattern, "blocks": blocks, "mlp": drawn.mlps.get("-", "none"), **drawn.rest}


def _mlp(mlp: Mapping[str, Any] | None, carried: list[bool], drawn: Drawn) -> dict[str, Any]:
    """The override that gives a place this MLP, where its blocks do not have it already."""
    has = drawn.mlps["-"] if carried[0] else None
    return {} if len(set(carried)) == 1 and mlp == has else {"mlp": "none" if mlp is None else dict(mlp)}


def flow(value: Any) -> str:
    """YAML in one line, as overrides of the pattern are written."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {flow(inner)}" for name, inner in value.items()) + "}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


# -------------------------------------------------------------------------------------------------------------- weights
def built(spec: Mapping[str, Any], seed: int = 0) -> hl.HybridLM:
    """A model of the spec with every parameter random."""
    return randomised(hl.build(spec), seed)


@torch.no_grad()
def randomised(model: torch.nn.Module, seed: int = 0) -> Any:
    """The model, ours or theirs, with every parameter random."""
    drawn = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(random_values(name, parameter.shape, drawn))
    for name, buffer in model.named_buffers():
        if name.endswith(("router.bias", "e_score_correction_bias")):
            apart = torch.linspace(-0.15, 0.15, len(buffer))  # so that an exchange is seen, and no expert starves
            buffer.copy_(apart[torch.randperm(len(buffer), generator=drawn)])
    return model.eval()


def random_values(name: str, shape: tuple[int, ...], drawn: torch.Generator) -> torch.Tensor:
    """Of a size that keeps every part audible: decays between 0.1 and 4, steps about 0.5, norms and biases about 1.

    Queries and keys are small, so that attention stays even and roundings are not made larger from layer to layer.
    """
    noise = torch.randn(shape, generator=drawn)
    if name.endswith("sinks"):
        return torch.full_like(noise, -1e4)  # the only one that can be read
    if name.endswith(("A_log", "dt_bias", "dt_proj.bias")) or ("embed" in name and noise.ndim > 1):
        return noise
    if noise.ndim == 1:
        return 1 + 0.3 * noise
    even = re.search(r"([qk]_proj|adapter_list\.\d+\.1)\.weight$", name)
    return noise * shape[-1] ** -0.5 * (0.5 if even else 1)


def outside(draw: Random) -> dict[str, Any]:
    """Keys of a spec that every family can say: an odd vocabulary, an epsilon that shows, ties."""
    return {
        "d_model": D,
        "vocab_size": draw.choice([WORDS, 61, 128]),
        "norm_eps": draw.choice([1e-5, 1e-3, 3e-2]),
        "tie_embeddings": draw.choice([True, False]),
    }


# ------------------------------------------------------------------------------------------------- what no family knows
def _first(drawn: Drawn) -> str:
    """The letter of some mixer."""
    return next(iter(drawn.mixers))


def _shared(drawn: Drawn, draw: Random) -> Drawn:
    first = _first(drawn)
    return replace(drawn, halves=(f"{first}@twice", *drawn.mlps, f"{first}@twice", *drawn.mlps, *drawn.halves))


SPOILED: dict[str, Callable[[Drawn, Random], Drawn]] = {
    "norm: layernorm": lambda drawn, draw: drawn.saying(norm="layernorm"),
    "language model": lambda drawn, draw: drawn.saying(
        head={"type": "classify", "classes": 3, "pool": "mean"}, tie_embeddings=False
    ),
    "norms": lambda drawn, draw: drawn.saying(norms="sandwich"),
    "shared": _shared,
    "mixer s4": lambda drawn, draw: replace(
        drawn, mixers={**drawn.mixers, "Z": {"type": "s4", "d_state": 4}}, halves=("Z", *drawn.mlps, *drawn.halves)
    ),
    "MLP gelu": lambda drawn, draw: replace(
        drawn, mlps={**drawn.mlps, "g": {"type": "gelu", "width": 24}}, halves=(*drawn.halves, _first(drawn), "g")
    ),
}
