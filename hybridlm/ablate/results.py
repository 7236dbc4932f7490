"""What a study found: the folders it lies in, one result.json a trial, and all of them as a table.

    FOLDER/study.yaml, arms.json                  the study as it was read, and what its arms are and cost
    FOLDER/trials/KEY/trial.yaml                  one trial: resolved spec, data, evals, training, seed and lr
    FOLDER/trials/KEY/result.json                 what came out; written once, last: a trial with one is finished
    FOLDER/trials/KEY/failed.json                 how it crashed, the last time it was tried

result.json carries the sha256 of what it says, so that not one digit changes unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridlm.errors import CheckpointError, SpecError, did_you_mean
from hybridlm.files import atomic_write

if TYPE_CHECKING:
    from hybridlm.ablate.study import Study

FORMAT = 1
RESULT, FAILED, TRIALS = "result.json", "failed.json", "trials"
LOWER_IS_BETTER = ("loss", "bits_per_byte", "solved_at")

Metrics = dict[str, float]
"""loss, accuracy and solved of a task; loss (nats a token) and bits_per_byte of text. NaN: there was none."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one trial found.

    key, seed, lr: which trial it is. steps: optimiser steps taken. seconds: of this trial's share of the work.
    device:      what it ran on.
    final:       of the held-out samples, after the last step.
    evals:       {name: of the study's further evaluations}.
    curve:       [[step, held-out metrics], ...], in order, the last step's included.
    solved_at:   the first evaluated step at which `stop_at` held; None: never, or the study has none.
    diverged_at: the step whose loss or gradient was no number; the trial ends with the weights before it.
    knockouts:   {"0.mamba2.zero": held-out metrics with what the mixer of layer 0 adds zeroed, "0.mamba2.mean": with it
                 replaced by its mean, "1.attention.zero": ...}; see knockout.py.
    """

    key: str
    seed: int
    lr: float
    steps: int
    seconds: float
    device: str
    final: Metrics
    evals: dict[str, Metrics] = field(default_factory=dict)
    curve: list[tuple[int, Metrics]] = field(default_factory=list)
    solved_at: int | None = None
    diverged_at: int | None = None
    knockouts: dict[str, Metrics] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write result.json into the trial's folder, atomically. OSError: a full disk, say; nothing is there then."""
        said = {"format": FORMAT, **_to_json(asdict(self))}
        atomic_write(folder / RESULT, json.dumps({**said, "sha256": _seal(said)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result in a trial's folder; None: there is none yet. CheckpointError: a damaged one."""
        path = folder / RESULT
        try:
            said = json.loads(path.read_bytes())
            seal = said.pop("sha256")
            if seal != _seal(said):
                raise ValueError("its sha256 does not fit what it says")
            if said.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            return cls(**{f.name: _from_json(f.name, said[f.name]) for f in fields(cls)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path}: damaged: {error}; the trial must run anew") from error

    def row(self, arm: str) -> dict[str, Any]:
        """One line of the table: final metrics by their names, those of an evaluation as `name.metric`."""
        further = {f"{name}.{metric}": value for name, found in self.evals.items() for metric, value in found.items()}
        about = {"arm": arm, "seed": self.seed, "lr": self.lr, "key": self.key, **self.final, **further}
        ran = {name: getattr(self, name) for name in ("steps", "seconds", "device", "solved_at", "diverged_at")}
        return {**about, **ran, "curve": self.curve, "knockouts": self.knockouts}


def trial_folder(folder: str | Path, key: str) -> Path:
    """Where a study in `folder` keeps the trial."""
    return Path(folder) / TRIALS / key


@dataclass(frozen=True)
class Missing:
    """A trial of the study without a result, and why: not run yet, the last line of a crash, a damaged file."""

    arm: str
    seed: int
    lr: float
    key: str
    why: str


@dataclass(frozen=True)
class Results:
    """A study and what its trials found.

    table:   one row a finished trial of an arm, as `Result.row` says, by arm, learning rate and seed.
    missing: its other trials.
    """

    study: Study
    table: list[dict[str, Any]]
    missing: list[Missing] = field(default_factory=list)

    @property
    def score(self) -> str:
        """What the best learning rate is chosen by: the held-out accuracy of a task that has one, else the loss."""
        return "accuracy" if any("accuracy" in row for row in self.table) else "loss"

    def rows(self, arm: str, lr: float | None = None) -> list[dict[str, Any]]:
        """The rows of an arm, of one learning rate only if it is given. SpecError: the study has no such arm."""
        names = [one.name for one in self.study.arms]
        if arm not in names:
            raise SpecError(f"arm: {arm!r}; the study's arms are {', '.join(names)}.{did_you_mean(arm, names)}")
        return [row for row in self.table if row["arm"] == arm and lr in (None, row["lr"])]

    def means(self, arm: str, metric: str | None = None) -> dict[float, float]:
        """{lr: mean over seeds} of a metric (default: `score`), over the finished trials, in the order of the grid.

        NaN counts as worst: a learning rate whose loss was no number in one seed is not the best one.
        """
        metric = metric or self.score
        found = {lr: [_number(row, metric) for row in self.rows(arm, lr)] for lr in self.study.lr}
        return {lr: float(np.mean(values)) for lr, values in found.items() if values}

    def best_lr(self, arm: str, metric: str | None = None) -> float | None:
        """The learning rate with the best mean over seeds; the lowest of equals. None: no trial has finished.

        Only learning rates of which most seeds have finished take part. metric: default `score`.
        """
        metric = metric or self.score
        most = max((len(self.rows(arm, lr)) for lr in self.study.lr), default=0)
        means = {lr: mean for lr, mean in self.means(arm, metric).items() if len(self.rows(arm, lr)) == most}
        if not means:
            return None
        sign = 1 if lower_is_better(metric) else -1
        return min(means, key=lambda lr: (math.isnan(means[lr]), 0 if math.isnan(means[lr]) else sign * means[lr], lr))

    def values(self, arm: str, metric: str, lr: float | None = None) -> np.ndarray:
        """(seeds,) float64: a metric of an arm by seed, at its best learning rate by `score`, or at `lr`.

        Seed s is entry s for every arm, so that arms are paired. NaN: the trial has not finished, or has no such
        metric.
        """
        lr = self.best_lr(arm) if lr is None else lr
        by_seed = {row["seed"]: _number(row, metric) for row in self.rows(arm, lr)} if lr is not None else {}
        return np.array([by_seed.get(seed, math.nan) for seed in range(self.study.seeds)])

    def solved_at(self, arm: str, lr: float | None = None) -> list[int | None]:
        """The steps at which the arm's finished seeds were solved, at its best lr; None: not within the run."""
        lr = self.best_lr(arm) if lr is None else lr
        return [row["solved_at"] for row in sorted(self.rows(arm, lr), key=lambda row: row["seed"])]

    def metrics(self) -> list[str]:
        """Every metric in the table: final ones, then `name.metric` of the evaluations."""
        about = {"arm", "seed", "lr", "key", "steps", "seconds", "device", "solved_at", "diverged_at", "curve"}
        return list(dict.fromkeys(name for row in self.table for name in row if name not in about | {"knockouts"}))


def load(study: Study, folder: str | Path) -> Results:
    """What a study's folder holds by now: whoever runs it may be at work still."""
    table, missing = [], []
    for trial in study.trials():
        place = trial_folder(folder, trial.key)
        try:
            result = Result.read(place)
        except CheckpointError as error:
            result, why = None, str(error)
        else:
            why = _why(place)
        if result is None:
            missing.append(Missing(trial.arm.name, trial.seed, trial.lr, trial.key, why))
        else:
            table.append(result.row(trial.arm.name))
    return Results(study, table, missing)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric, `name.metric` included, is the better one."""
    return metric.rpartition(".")[2] in LOWER_IS_BETTER


def is_share(metric: str) -> bool:
    """Whether a metric, `name.metric` included, lies between 0 and 1."""
    return metric.rpartition(".")[2] in ("accuracy", "solved")


def _why(place: Path) -> str:
    try:
        return f"it crashed: {json.loads((place / FAILED).read_bytes())['error']}"
    except FileNotFoundError:
        return "it has not finished"
    except (ValueError, KeyError, TypeError):
        return f"it crashed, and {place / FAILED} is damaged"


def _number(row: Mapping[str, Any], metric: str) -> float:
    value = row.get(metric)
    return math.nan if value is None else float(value)


def _seal(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    """NaN as null, which JSON has; infinity is none either."""
    if isinstance(value, Mapping):
        return {key: _to_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(name: str, value: Any) -> Any:
    """A field of Result as it was: null is NaN among metrics, and the pairs of a curve are tuples."""
    if name == "final":
        return _metrics(value)
    if name in ("evals", "knockouts"):
        return {key: _metrics(found) for key, found in value.items()}
    return list(_pairs(value)) if name == "curve" else value


def _pairs(curve: list) -> Iterator[tuple[int, Metrics]]:
    for step, found in curve:
        yield int(step), _metrics(found)


def _metrics(found: Mapping[str, float | None]) -> Metrics:
    return {name: math.nan if value is None else float(value) for name, value in found.items()}
