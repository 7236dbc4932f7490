"""The sections of a study file, from plain mappings: each key is checked by itself, so that all mistakes are found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from hybridlm import checks
from hybridlm.ablate.parts import Budget, Claim, Data, Match, StopAt, Train
from hybridlm.errors import SpecError, nearest
from hybridlm.problems import Problems

T = TypeVar("T")
Rules = Mapping[str, Callable[[str, Any], Any]]
"""{key: (path, value) -> the value as it is kept, or SpecError}."""

MEASURES = ("params", "flops_train", "flops_infer", "cache_bytes")
AT_LENGTH = ("flops_infer", "cache_bytes")
_TO = re.compile(r"([a-z_]+)(?:@([0-9]{1,12}))?")


def read(
    cls: type[T], given: Any, path: str, rules: Rules, problems: Problems, needed: tuple[str, ...] = ()
) -> T | None:
    """A section as a dataclass; None where something in it is wrong, which is then among the problems."""
    if not isinstance(given, Mapping):
        problems.add(path, f"{given!r}; it must be a mapping with keys of {', '.join(rules)}")
        return None
    before = len(problems.found)
    for key in given:
        if key not in rules:
            near = nearest(str(key), rules)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(rules)}"
            problems.add(f"{path}.{key}", f"unknown field; {hint}")
    for key in needed:
        if key not in given:
            problems.add(f"{path}.{key}", "missing")
    values = {}
    for key, rule in rules.items():
        if key in given:
            with problems.at():
                values[key] = rule(f"{path}.{key}", given[key])
    return cls(**values) if len(problems.found) == before else None


# ----------------------------------------------------------------------------------------------------- single values
def count(low: int = 1, high: int = checks.LARGEST) -> Callable[[str, Any], int]:
    """An integer from low to high."""
    return lambda path, value: checks.whole(path, value, low, high)


def number(low: float, high: float) -> Callable[[str, Any], float]:
    """A finite number from low to high."""
    return lambda path, value: checks.real(path, value, low, high)


def one_of(*allowed: str) -> Callable[[str, Any], str]:
    """One of the words."""
    return lambda path, value: checks.choice(path, value, allowed)


def text(path: str, value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{path}: {value!r}; it must be text")
    return value


def texts(path: str, value: Any) -> tuple[str, ...]:
    """A list of texts, none twice."""
    if not isinstance(value, list | tuple):
        raise SpecError(f"{path}: {value!r}; it must be a list")
    found = tuple(text(f"{path}.{i}", item) for i, item in enumerate(value))
    if twice := [item for i, item in enumerate(found) if item in found[:i]]:
        raise SpecError(f"{path}: {twice[0]!r} stands there twice")
    return found


def mapping(path: str, value: Any) -> Mapping[str, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{path}: {value!r}; it must be a mapping")
    return value


def positive(path: str, value: Any) -> float:
    """A finite number above 0."""
    if (found := checks.real(path, value, 0, 1e9)) == 0:
        raise SpecError(f"{path}: 0; it must be above 0")
    return found


def nullable(rule: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """What the rule says, or null."""
    return lambda path, value: None if value is None else rule(path, value)


def pair(path: str, value: Any) -> tuple[float, float]:
    """Two numbers, the first below the second."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SpecError(f"{path}: {value!r}; it must be two numbers, such as [1, 3]")
    low, high = (checks.real(f"{path}.{i}", item) for i, item in enumerate(value))
    if low > high:
        raise SpecError(f"{path}: {low:g} is greater than {high:g}; swap them")
    return low, high


def steps_of_lr(path: str, value: Any) -> tuple[float, ...]:
    """The grid of learning rates, ascending."""
    if not isinstance(value, list | tuple) or not value:
        raise SpecError(f"{path}: {value!r}; it must be a list such as [5.0e-4, 1.0e-3, 2.0e-3, 4.0e-3]")
    problems = Problems()
    found = []
    for i, item in enumerate(value):
        with problems.at():
            found.append(positive(f"{path}.{i}", item))
    if problems.found:
        raise SpecError("\n".join(problems.found))
    if len(set(found)) < len(found):
        raise SpecError(f"{path}: {value!r}: a learning rate stands there twice; each is a run of its own")
    return tuple(sorted(found))


# ---------------------------------------------------------------------------------------------------------- sections
def read_train(given: Any, problems: Problems) -> Train | None:
    """train:"""
    found = read(Train, given, "train", {**_TRAIN, "stop_at": _stop_at}, problems, ("steps",))
    if found and "eval_every" in given and found.eval_every > found.steps:
        problems.add("train.eval_every", f"{found.eval_every} is more than steps = {found.steps}; use at most that")
    return found


_TRAIN: Rules = {
    "steps": count(),
    "batch_size": count(high=1 << 20),
    "warmup": count(0),
    "schedule": one_of("cosine", "wsd", "constant"),
    "final_lr": number(0, 1),
    "weight_decay": number(0, 10),
    "clip": nullable(positive),
    "eval_every": count(),
    "precision": one_of("float32", "bf16"),
}


def _stop_at(path: str, value: Any) -> StopAt | None:
    """{metric: value}"""
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) != 1:
        raise SpecError(f"{path}: {value!r}; it must be one metric and its value, such as {{accuracy: 0.995}}")
    metric, bar = next(iter(value.items()))
    checks.choice(path, metric, ("accuracy", "solved", "loss", "bits_per_byte"))
    return StopAt(metric=metric, value=checks.real(f"{path}.{metric}", bar, 0, 1e6))


def read_budget(given: Any, problems: Problems) -> Budget | None:
    """budget:"""
    if given is None:
        return None
    rules: Rules = {"minutes": positive, "cores": count(high=4096), "gpu_hours": positive}
    found = read(Budget, given, "budget", rules, problems)
    if found and (found.minutes is None) == (found.gpu_hours is None):
        problems.add("budget", "give {minutes: 30, cores: 2} for a CPU, or {gpu_hours: 1} for a GPU")
        return None
    if found and found.gpu_hours is not None and "cores" in given:
        problems.add("budget.cores", "is for a budget in minutes; leave it out beside gpu_hours")
    return found


def read_match(given: Any, problems: Problems) -> Match | None:
    """match:"""
    if given is None or given == "none":
        return None
    rules: Rules = {"to": _measure, "by": one_of("mlp", "d_model"), "of": _arm_or_coordinates}
    found = read(dict, given, "match", rules, problems, ("to",))
    return None if found is None else Match(**{**found, **found["to"]})


def _measure(path: str, value: Any) -> dict[str, Any]:
    parts = _TO.fullmatch(value) if isinstance(value, str) else None
    allowed = "params, flops_train, flops_infer@2048 (of the token that ends 2,048) and cache_bytes@2048"
    if not parts or parts[1] not in MEASURES:
        near = nearest(parts[1], MEASURES) if parts else None
        hint = f". Did you mean {near!r}?" if near else ""
        raise SpecError(f"{path}: {value!r}; it must be one of {allowed}{hint}")
    if parts[1] in AT_LENGTH and not parts[2]:
        raise SpecError(f"{path}: {value!r} depends on a length; write {parts[1]}@2048")
    if parts[2] and parts[1] not in AT_LENGTH:
        raise SpecError(f"{path}: {value!r}: {parts[1]} has no length; write {parts[1]} alone")
    return {"to": parts[1], "at": parts[2] and checks.whole(path, int(parts[2]))}


def _arm_or_coordinates(path: str, value: Any) -> str | Mapping[str, Any]:
    return mapping(path, value) if isinstance(value, Mapping) else text(path, value)


def read_data(given: Any, path: str, problems: Problems, named: bool = False) -> Data | None:
    """data:, or one entry of eval:, which has a name."""
    rules: Rules = {
        **({"name": text} if named else {}),
        "task": text,
        "params": mapping,
        "text": text,
        "context": count(),
        "tokenizer": text,
        "held_out": count(),
    }
    found = read(Data, given, path, rules, problems, ("name",) if named else ())
    if found is None:
        return None
    if (found.task is None) == (found.text is None):
        problems.add(
            path, "give either task: and its params, such as {task: mqar, params: {pairs: 8}}, or text: stdlib"
        )
        return None
    for key in ("context", "tokenizer") if found.task else ("params",):
        if key in given:
            problems.add(f"{path}.{key}", f"is for {'text' if found.task else 'a task'}; leave it out")
    return found


def read_claim(given: Any, path: str, problems: Problems) -> Claim | None:
    """One entry of claims:; what it says of arms and axes is judged in `bars`."""
    rules: Rules = {
        "name": text,
        "metric": text,
        "arm": text,
        "at_least": number(-1e9, 1e9),
        "at_most": number(-1e9, 1e9),
        "seeds": count(high=10_000),
        "over": text,
        "by": number(-1e9, 1e9),
        "axis": text,
        "argmin_between": pair,
        "arms": texts,
        "increasing": number(-1e9, 1e9),
        "needs": texts,
    }
    assert set(rules) == {field.name for field in fields(Claim)}
    return read(Claim, given, path, rules, problems, ("name", "metric"))
