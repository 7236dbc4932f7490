"""From a study file to what a Study holds: every section read, every arm resolved and matched, all mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridlm import checks
from hybridlm.ablate import sections
from hybridlm.ablate.arms import Arm
from hybridlm.ablate.axes import Axis, read_axis
from hybridlm.ablate.bars import Setting, check_claims
from hybridlm.ablate.drafts import Draft, Place, check_alike, drafts, places, settle, shared
from hybridlm.ablate.parts import Claim, Data, Match, Train
from hybridlm.ablate.subject import check_fit, guess_of, length_of
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, did_you_mean, nearest
from hybridlm.problems import Problems
from hybridlm.resources import find_config

NEEDED = ("name", "question", "baseline", "data", "train", "lr", "seeds")
KEYS = (*NEEDED, "arms", "axes", "reference", "match", "eval", "widen", "budget", "claims", "allow")
ALLOW = ("few_lrs", "few_seeds", "attention_first")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MOST_SEEDS = 1000
MOST_WIDER = 8
LEAST_LRS = 4


def read_fields(given: Mapping[str, Any], name: str, *, has_run: bool = False) -> dict[str, Any]:
    """The fields of a Study; name: what errors call it. has_run: its texts need not be there any more.

    SpecError: everything that is wrong.
    """
    problems = Problems()
    fields = _Reader(given, problems, name, has_run).fields()
    problems.refuse(name)
    return fields


class _Reader:
    """Reads a study section by section; a section that is wrong is None, and what builds on it is left out."""

    def __init__(self, given: Mapping[str, Any], problems: Problems, name: str, has_run: bool):
        self.given, self.problems, self.file, self.has_run = given, problems, name, has_run
        for key in given:
            if key not in KEYS:
                near = nearest(str(key), KEYS)
                problems.add(
                    key, "unknown field; " + (f"did you mean {near}?" if near else f"known: {', '.join(KEYS)}")
                )
        for key in NEEDED:
            if key not in given:
                problems.add(key, "missing")
        with problems.at():
            checks.distinct("allow", given.get("allow", ()), ALLOW)
        if "arms" not in given and not given.get("axes"):
            problems.add("arms", "missing; a study needs arms: or axes:")

    def fields(self) -> dict[str, Any]:
        """The fields of a Study; none where something is wrong."""
        given, problems = self.given, self.problems
        data, evals = self._data(), self._evals()
        train = sections.read_train(given["train"], problems) if "train" in given else None
        match = sections.read_match(given.get("match"), problems)
        budget = sections.read_budget(given.get("budget"), problems)
        name, question = self._one("name", _name), self._one("question", sections.text)
        lr = self._one("lr", sections.steps_of_lr)
        seeds = self._one("seeds", sections.count(high=MOST_SEEDS))
        baseline, axes, listed, wanted = self._baseline(), *self._named()
        found = self._drafts(baseline, axes, listed, wanted or ())
        names = None if wanted is None else [place.name for place in wanted]
        reference = self._reference(names)
        arms = self._settled(found, data, match, reference, names)
        self._check_fit(arms, data, evals)
        claims = self._claims()
        if data and train and seeds:
            setting = Setting(
                arms=names,
                alike=dict(shared(arms)),
                axes={axis.name: axis.labels for axis in axes},
                tests={"": data, **{test.name: test for test in evals}},
                guesses={test.name: guess for test in [data, *evals] if (guess := guess_of(test)) is not None},
                train=train,
                seeds=seeds,
            )
            check_claims(claims, setting, problems)
        if problems.found:
            return {}
        self._warn(arms, data, train, lr, seeds)
        return {
            "name": name,
            "question": question,
            "baseline": baseline,
            "arms": arms,
            "reference": reference,
            "match": match,
            "data": data,
            "eval": tuple(evals),
            "train": train,
            "lr": lr,
            "widen": self._widen(lr),
            "seeds": seeds,
            "budget": budget,
            "claims": tuple(claim for _, claim in claims),
            "axes": {axis.name: axis.labels for axis in axes},
            "source": {**given, "baseline": baseline.to_dict()},  # wherever it is read again
            "warnings": tuple(problems.warnings),
        }

    def _one(self, key: str, rule: Any) -> Any:
        """A key's value by its rule, or None."""
        if key in self.given:
            with self.problems.at():
                return rule(key, self.given[key])
        return None

    def _widen(self, lr: Sequence[float] | None) -> int:
        times = self._one("widen", sections.count(0, MOST_WIDER)) or 0
        if times and lr and len(lr) < 2:
            self.problems.add("widen", "lr has one rate, and the next is as far off as its neighbour; give two or more")
        if times and not self.given.get("claims"):
            self.problems.add("widen", "no claim speaks of an arm, so that none gets more rates; leave it out")
        return times

    def _baseline(self) -> ModelSpec | None:
        if "baseline" not in self.given:
            return None
        given = self.given["baseline"]
        with self.problems.at("baseline"):
            if isinstance(given, str):
                beside = Path(self.file).parent / given
                spec = ModelSpec.read(beside if beside.is_file() else find_config(given, "models"))
            elif isinstance(given, Mapping):
                spec = ModelSpec.from_dict(given)
            else:
                raise SpecError(f"{given!r}; it must be a mapping, or the name of a model's file")
            plan(spec)
            return spec
        return None

    def _data(self) -> Data | None:
        if "data" not in self.given:
            return None
        return sections.read_data(self.given["data"], "data", self.problems)

    def _evals(self) -> list[Data]:
        given = self.given.get("eval") or []
        if not isinstance(given, list | tuple):
            self.problems.add("eval", f"{given!r}; it must be a list of tests, such as [{{name: long, task: mqar}}]")
            return []
        read = [sections.read_data(one, f"eval.{i}", self.problems, named=True) for i, one in enumerate(given)]
        names = [test.name for test in read if test]
        for i, test in enumerate(read):
            if test and (names.count(test.name) > 1 or not NAME.fullmatch(test.name)):
                why = (
                    "is there twice"
                    if NAME.fullmatch(test.name)
                    else "has other characters than letters, digits, _ and -"
                )
                self.problems.add(f"eval.{i}.name", f"{test.name!r} {why}; each test has a name of its own")
        return [test for test in read if test]

    def _named(self) -> tuple[list[Axis], dict[str, Mapping[str, Any]], list[Place] | None]:
        """The axes, the arms that have names, and every arm of their product. None: what they are is not clear."""
        before = len(self.problems.found)
        axes, listed = self._axes(), self._arms()
        if len(self.problems.found) == before:
            with self.problems.at():
                return axes, listed, places(listed, axes) or None
        return axes, listed, None

    def _arms(self) -> dict[str, Mapping[str, Any]]:
        given = self.given.get("arms") or {}
        if not isinstance(given, Mapping):
            self.problems.add(
                "arms", f"{given!r}; it must be a mapping such as {{hybrid: {{}}, pure: {{pattern: MM}}}}"
            )
            return {}
        if not self.given.get("axes") and not given and "arms" in self.given:
            self.problems.add("arms", "empty; name at least one")
        arms = {}
        for name, changes in given.items():
            if not NAME.fullmatch(name):
                self.problems.add(f"arms.{name}", "use letters, digits, _ and - in an arm's name")
            if changes is not None and not isinstance(changes, Mapping):
                self.problems.add(f"arms.{name}", f"{changes!r}; it must be a mapping such as {{d_model: 64}}, or {{}}")
            else:
                arms[name] = changes or {}
        return arms

    def _axes(self) -> list[Axis]:
        given = self.given.get("axes") or {}
        if not isinstance(given, Mapping):
            self.problems.add("axes", f"{given!r}; it must be a mapping such as {{ratio: {{attention: [0, 1, 2]}}}}")
            return []
        axes = []
        for name, axis in given.items():
            with self.problems.at(f"axes.{name}"):
                axes.append(read_axis(name, axis))
        paths = [axis.path for axis in axes]
        for axis in axes:
            if paths.index(axis.path) != axes.index(axis):
                self.problems.add(f"axes.{axis.name}", f"{axis.path} is the path of two axes; join their values in one")
        return axes

    def _drafts(
        self,
        baseline: ModelSpec | None,
        axes: Sequence[Axis],
        listed: Mapping[str, Mapping[str, Any]],
        wanted: Sequence[Place],
    ) -> list[Draft]:
        """The arms that can be built, no axis without effect among them."""
        found = drafts(baseline.to_dict(), listed, axes, wanted, self.problems) if baseline else []
        check_alike(found, axes, self.problems)
        return found

    def _reference(self, names: Sequence[str] | None) -> str | None:
        """The name of the reference; None where it is not clear which there are."""
        if not names:
            return None
        wanted = self.given.get("reference", names[0])
        if wanted not in names:
            some = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
            near = did_you_mean(str(wanted), names)
            self.problems.add("reference", f"there is no arm {wanted!r}; arms: {some}.{near}")
            return None
        return wanted

    def _settled(
        self,
        found: Sequence[Draft],
        data: Data | None,
        match: Match | None,
        reference: str | None,
        names: Sequence[str] | None,
    ) -> tuple[Arm, ...]:
        """The arms, matched, once everything that decides them is known."""
        wrong = match is None and self.given.get("match") not in (None, "none")
        if not found or data is None or reference is None or wrong:
            return ()
        target = (match.of or reference) if match else None
        if target in names and target not in [draft.name for draft in found]:
            return ()  # it cannot be built, which has been said
        context = None
        with self.problems.at():
            context = length_of(data)
        return settle(found, match, reference, context, self.problems) if context else ()

    def _check_fit(self, arms: Sequence[Arm], data: Data | None, evals: Sequence[Data]) -> None:
        """Whether every arm can read every sample, which takes the texts."""
        if self.has_run:
            return
        if data is not None:
            check_fit("data", data, arms, self.problems)
        for i, test in enumerate(evals):
            check_fit(f"eval.{i}", test, arms, self.problems)

    def _claims(self) -> list[tuple[str, Claim]]:
        given = self.given.get("claims") or []
        if not isinstance(given, list | tuple):
            self.problems.add("claims", f"{given!r}; it must be a list of claims")
            return []
        read = [(f"claims.{i}", sections.read_claim(one, f"claims.{i}", self.problems)) for i, one in enumerate(given)]
        return [(path, claim) for path, claim in read if claim]

    # -------------------------------------------------------------------------------------------------------- warnings
    def _warn(self, arms: Sequence[Arm], data: Data, train: Train, lr: Sequence[float], seeds: int) -> None:
        allowed, warn = self.given.get("allow", ()), self.problems.warn
        if len(lr) < LEAST_LRS and "few_lrs" not in allowed:
            warn(
                "lr", f"{len(lr)} learning rates; with fewer than {LEAST_LRS} an arm may look bad for its window alone"
            )
        least = 5 if data.task else 3
        if seeds < least and "few_seeds" not in allowed:
            warn("seeds", f"{seeds}; results of {'tasks' if data.task else 'text'} scatter so that {least} are usual")
        if train.warmup >= train.steps:
            warn("train.warmup", f"{train.warmup} of {train.steps} steps; no run gets to its learning rate")
        first = [arm.name for arm in arms if _attention_first(arm)]
        if first and "attention_first" not in allowed:
            many = f"{len(first)} arms begin" if len(first) > 1 else f"{first[0]} begins"
            warn("arms", f"{many} with attention at layer 0, which has done worse than either pure model")
        for name, same in shared(arms):
            warn("arms", f"{name} is the same model as {same}, and shares its runs")


def _attention_first(arm: Arm) -> bool:
    from hybridlm.compose.cost import keeps_keys, model_cost

    first = model_cost(arm.spec).layers[0]
    return any(keeps_keys(mixer) for mixer in first.mixers) and arm.cost.attention_of_layers < 1


def _name(path: str, value: Any) -> str:
    if not NAME.fullmatch(sections.text(path, value)):
        raise SpecError(f"{path}: {value!r}; it names a folder: use letters, digits, _ and -, at most 64")
    return value
