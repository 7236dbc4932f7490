"""A study as data: a question, a baseline, arms that differ from it, how they are trained, and what is claimed of them.

    study = Study.read("configs/studies/recall-rescue.yaml")
    study.arms                # each with its resolved spec, its cost and the residual of the match
    study.trials()            # every run: an arm, a seed, a learning rate

The file is read strictly, and refused as a whole: all of its mistakes at once, before anything runs. docs/ablate.md
describes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from hybridlm.ablate.arms import Arm, ArmCost
from hybridlm.ablate.parts import Budget, Claim, Data, Match, StopAt, Train, plain
from hybridlm.ablate.reading import read_fields
from hybridlm.compose import strict_yaml
from hybridlm.compose.spec import ModelSpec

__all__ = ["Arm", "ArmCost", "Budget", "Claim", "Data", "Match", "StopAt", "Study", "Train", "Trial"]

KEY_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that can be run: everything in it was checked.

    name:      of its folder.
    question:  one sentence.
    baseline:  the model that the arms change.
    arms:      in the file's order; of axes, the first varies slowest.
    reference: the name of the arm that the others are compared with.
    match:     in what the arms agree, or None.
    data:      of training, and the held-out part of it.
    eval:      further tests.
    train:     the training of every run.
    lr:        the learning rates of every arm.
    seeds:     so many seeds, from 0: each fixes the initial weights and the order of the data, for every arm alike.
    budget:    what all may take, or None.
    claims:    in the file's order.
    widen:     so many times a learning rate may be added where an arm does best at an end of them.
    axes:      {axis: its values}, as coordinates of arms have them.
    source:    the mapping that the file holds.
    warnings:  what a reader of the results should know.
    """

    name: str
    question: str
    baseline: ModelSpec
    arms: tuple[Arm, ...]
    reference: str
    match: Match | None
    data: Data
    eval: tuple[Data, ...]
    train: Train
    lr: tuple[float, ...]
    seeds: int
    budget: Budget | None
    claims: tuple[Claim, ...]
    widen: int = 0
    axes: Mapping[str, tuple] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, path: str | Path, *, has_run: bool = False) -> Self:
        """The study in a YAML file. has_run: it is read for its results, and its texts need not be there any more.

        SpecError: everything that is wrong with it.
        """
        return cls(**read_fields(strict_yaml.read(path), str(path), has_run=has_run))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], name: str = "study") -> Self:
        """The study in a plain mapping; name: what errors call it."""
        return cls(**read_fields(given, name))

    def to_yaml(self) -> str:
        """The text of a file that `read` reads back."""
        return strict_yaml.dump(self.source)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trials(self) -> list[Trial]:
        """Every arm with every learning rate and seed. Arms that are the same model have the same keys."""
        return [Trial(self, arm, seed, lr) for arm in self.arms for lr in self.lr for seed in range(self.seeds)]

    def runs(self) -> list[Trial]:
        """Its trials with each key once: what is to be run."""
        return list({trial.key: trial for trial in reversed(self.trials())}.values())[::-1]

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What all of its runs have in common, of what decides their numbers."""
        return {
            "format": KEY_FORMAT,
            "data": asdict(self.data),
            "eval": [asdict(data) for data in self.eval],
            "train": asdict(self.train),
        }


@dataclass(frozen=True)
class Trial:
    """One run: the arm's model, trained with a seed and a learning rate. Equal keys are equal runs.

    A setting that is null says nothing: one that hybridlm has since then leaves the keys of finished runs as they are.
    """

    study: Study = field(repr=False, compare=False)
    arm: Arm = field(repr=False, compare=False)
    seed: int
    lr: float
    key: str = field(init=False)

    def __post_init__(self) -> None:
        spec = plain(self.arm.spec.to_dict())
        about = self.study.setting | {"spec": spec, "seed": self.seed, "lr": self.lr}
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "key", hashlib.blake2b(text.encode()).hexdigest()[:16])
