"""Results whose numbers a test chooses, as a study of them would have left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hybridlm.ablate.parts import Claim, Train
from hybridlm.ablate.results import Missing, Results

GRID = (1e-3, 2e-3, 4e-3)
STEPS = 1000


@dataclass
class MadeUpArm:
    name: str
    coordinates: dict[str, Any] = field(default_factory=dict)


@dataclass
class MadeUpStudy:
    arms: list[MadeUpArm]
    seeds: int
    lr: tuple[float, ...] = GRID
    train: Train = field(default_factory=lambda: Train(steps=STEPS))
    claims: tuple[Claim, ...] = ()
    axes: dict[str, tuple] = field(default_factory=dict)
    widen: int = 0
    source: dict[str, Any] = field(default_factory=dict)


def results(
    values: dict[str, list[float]],
    *claims: Claim,
    metric: str = "accuracy",
    lr: tuple[float, ...] = GRID,
    best: float = GRID[1],
    worse: float = 0.05,
    coordinates: dict[str, dict[str, Any]] | None = None,
    curves: dict[str, list[float]] | None = None,
) -> Results:
    """{arm: its values by seed} at the learning rate `best`; at each other one they are worse by so much.

    curves: {arm: held-out values of every seed, evenly over the steps}; without one it has long been level.
    """
    arms = [MadeUpArm(name, (coordinates or {}).get(name, {})) for name in values]
    study = MadeUpStudy(arms, len(next(iter(values.values()))), lr, claims=claims)
    sign = -1 if metric == "accuracy" else 1
    table = []
    for name, row in values.items():
        for rate in lr:
            for seed, value in enumerate(row):
                shown = value if rate == best else value + sign * worse
                points = (curves or {}).get(name, [value] * 10)
                curve = [(STEPS * (i + 1) // len(points), {metric: point}) for i, point in enumerate(points)]
                key = f"{name}-{rate}-{seed}"
                table.append(
                    {
                        "arm": name,
                        "seed": seed,
                        "lr": rate,
                        "key": key,
                        metric: shown,
                        "solved_at": None,
                        "curve": curve,
                    }
                )
    return Results(study, table)


def without(found: Results, arm: str, seed: int, lr: float, why: str = "it has not finished") -> Results:
    """The same, where one run is missing."""
    row = next(row for row in found.table if (row["arm"], row["seed"], row["lr"]) == (arm, seed, lr))
    rest = [other for other in found.table if other is not row]
    return Results(found.study, rest, [*found.missing, Missing(arm, seed, lr, row["key"], why)])


def at_the_edge(found: Results, arm: str) -> Results:
    """The same, where the arm's runs at the middle of the grid and at its end have changed places."""
    turned = {GRID[1]: GRID[2], GRID[2]: GRID[1]}
    table = [{**row, "lr": turned.get(row["lr"], row["lr"])} if row["arm"] == arm else row for row in found.table]
    return Results(found.study, table)
