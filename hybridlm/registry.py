"""Names of the parts a model is composed of, and where each is found.

A registry maps a short name to a class. It holds import paths, never modules: `attention` costs nothing until a stack
asks for it. Three sources feed it, in this order: the table of built-in parts below, classes registered in this process
with `@mixers.register("name")`, and the entry points of other people's packages (`hybridlm.mixers`, `hybridlm.mlps`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from hybridlm.errors import SpecError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """One line of `hybridlm mixers`: a registered name, where it comes from, and what went wrong, if anything did."""

    name: str
    source: str
    part: type | None
    error: str | None = None


class Registry(Generic[T]):
    """Names of one kind of part. Unknown names raise SpecError with the nearest; duplicates raise at registration.

    needs: attributes without which a plugin's object is no such part.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], needs: Sequence[str] = ()):
        self.kind, self.needs = kind, needs
        self.group = group
        self._builtin = dict(builtin)
        self._registered: dict[str, type[T]] = {}

    @cached_property
    def _plugins(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name. Found once, loaded only when asked for."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make a class known under `name` in this process. SpecError if the name is taken."""
        taken = self._registered.get(name) or self._builtin.get(name) or self._plugins.get(name)
        if taken:
            raise SpecError(f"{self.kind} {name!r} is registered already ({taken}); choose another name")

        def add(part: type[T]) -> type[T]:
            self._registered[name] = part
            return part

        return add

    def unregister(self, name: str) -> None:
        """Forget a class that was registered in this process."""
        del self._registered[name]

    def names(self) -> list[str]:
        """Every known name, built-in ones first."""
        return list(dict.fromkeys([*self._builtin, *self._registered, *self._plugins]))

    def __contains__(self, name: str) -> bool:
        return name in self._builtin or name in self._registered or name in self._plugins

    def get(self, name: str) -> type[T]:
        """The class behind `name`, imported now. SpecError: unknown name, or a plugin that does not import."""
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name in self._registered:
            return self._registered[name]
        if name in self._plugins:
            return self._load(name)
        known = self.names()
        raise SpecError(f"unknown {self.kind} {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")

    def _load(self, name: str) -> type[T]:
        points = self._plugins[name]
        if len({point.value for point in points}) > 1:
            sources = ", ".join(_source(point) for point in points)
            raise SpecError(f"{self.kind} {name!r} is offered by several packages: {sources}; uninstall all but one")
        try:
            part = points[0].load()
        except (Exception, SystemExit) as error:  # a script that exits when imported takes nothing down either
            raise SpecError(f"{self.kind} {name!r} of {_source(points[0])} does not import: {error!r}") from error
        if lacking := [attribute for attribute in self.needs if not hasattr(part, attribute)]:
            raise SpecError(f"{self.kind} {name!r} of {_source(points[0])} is no {self.kind}: it has no {lacking[0]}")
        return part

    def listing(self) -> list[Listing]:
        """Every name with its class, or with the reason why it has none. A broken plugin does not hide the rest."""
        taken = [
            Listing(
                name,
                _source(point),
                None,
                f"the name is taken by hybridlm's own {self.kind}; the package must rename it",
            )
            for name in self._builtin
            for point in self._plugins.get(name, [])
        ]
        return [self._list(name) for name in self.names()] + taken

    def _list(self, name: str) -> Listing:
        plugin = name in self._plugins and name not in self._builtin
        source = (
            _source(self._plugins[name][0]) if plugin else "this process" if name in self._registered else "hybridlm"
        )
        try:
            return Listing(name, source, self.get(name))
        except SpecError as error:
            return Listing(name, source, None, str(error))


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} ({point.value})" if point.dist else point.value


mixers: Registry = Registry(
    "mixer",
    "hybridlm.mixers",
    {
        "attention": "hybridlm.layers.attention:Attention",
        "sliding_window": "hybridlm.layers.sliding_window:SlidingWindow",
        "mla": "hybridlm.layers.mla:LatentAttention",
        "s4": "hybridlm.layers.s4:S4",
        "s4d": "hybridlm.layers.s4d:S4D",
        "s5": "hybridlm.layers.s5:S5",
        "h3": "hybridlm.layers.h3:H3",
        "mamba": "hybridlm.layers.mamba:Mamba",
        "mamba2": "hybridlm.layers.mamba2:Mamba2",
        "mamba3": "hybridlm.layers.mamba3:Mamba3",
        "linear_attention": "hybridlm.layers.linear_attention:LinearAttention",
        "gated_deltanet": "hybridlm.layers.gated_deltanet:GatedDeltaNet",
        "rwkv7": "hybridlm.layers.rwkv7:RWKV7",
        "short_conv": "hybridlm.layers.short_conv_mixer:ShortConvMixer",
        "lstm": "hybridlm.layers.lstm:LSTM",
        "gru": "hybridlm.layers.gru:GRU",
    },
    needs=("Config", "cost"),
)

mlps: Registry = Registry(
    "mlp",
    "hybridlm.mlps",
    {
        "swiglu": "hybridlm.layers.mlp:SwiGLU",
        "geglu": "hybridlm.layers.mlp:GEGLU",
        "gelu": "hybridlm.layers.mlp:GELU",
        "relu2": "hybridlm.layers.mlp:ReLU2",
        "moe": "hybridlm.layers.moe:MoE",
    },
    needs=("Config", "cost"),
)

tasks: Registry = Registry(
    "task",
    "hybridlm.tasks",
    {
        "mqar": "hybridlm.tasks.mqar:MQAR",
        "mqar_packed": "hybridlm.tasks.mqar:PackedMQAR",
        "selective_copying": "hybridlm.tasks.copying:SelectiveCopying",
        "copying": "hybridlm.tasks.copying:Copying",
        "induction_heads": "hybridlm.tasks.induction_heads:InductionHeads",
        "linear_regression": "hybridlm.tasks.linear_regression:LinearRegression",
        "indirect_object": "hybridlm.tasks.indirect_object:IndirectObject",
        "associative_recall": "hybridlm.tasks.associative_recall:AssociativeRecall",
        "in_context_recall": "hybridlm.tasks.in_context_recall:InContextRecall",
        "fuzzy_recall": "hybridlm.tasks.fuzzy_recall:FuzzyRecall",
        "noisy_recall": "hybridlm.tasks.noisy_recall:NoisyRecall",
        "mad_selective_copying": "hybridlm.tasks.mad_selective_copying:MADSelectiveCopying",
        "compression": "hybridlm.tasks.compression:Compression",
        "memorization": "hybridlm.tasks.memorization:Memorization",
        "parity": "hybridlm.tasks.parity:Parity",
        "modular_arithmetic": "hybridlm.tasks.modular_arithmetic:ModularArithmetic",
        "phonebook": "hybridlm.tasks.phonebook:Phonebook",
        "needle": "hybridlm.tasks.needle:Needle",
    },
    needs=("draw", "guess"),
)

TASKS = "task"  # the data of every registered task

datasets: Registry = Registry(
    "data",
    "hybridlm.data",
    {
        "text": "hybridlm.train.data:TextData",
        "signals": "hybridlm.train.signals:SignalData",
        TASKS: "hybridlm.tasks.data:TaskData",
    },
)


def data_of(task: str) -> type:
    """The class of the data that `--task` names: text, signals, or a registered task's."""
    return datasets.get(TASKS if task in tasks else task)
