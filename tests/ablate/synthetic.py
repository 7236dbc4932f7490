"""Results of studies that nobody ran, with a known truth: what the report and its figures are tested on.

    recall()       arms by name on a task: bimodal accuracy, late phase transitions, knock-outs, crashes, a divergence
    curves()       ratio x placement on text: a loss with a known best ratio in a known basin
    large()        60 arms, 10 seeds
    hostile()      names that are markup, formulas, control characters

Seeds are paired: what a seed adds is the same for every arm.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from hybridlm.ablate.arms import Arm, arm_cost
from hybridlm.ablate.parts import Claim, Data, Match, StopAt, Train
from hybridlm.ablate.placement import indices
from hybridlm.ablate.results import Missing, Result, Results
from hybridlm.ablate.study import Study
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
STEPS, EVERY = 1500, 100
MQAR = Data(task="mqar", params={"pairs": 8, "length": 64})
SOLVE_STEP = {"hybrid": 420, "wide state": 900, "convolution, then attention": 300}  # true medians; others never solve
CEILING = {"mamba2": 0.55, "attention alone": 0.13, "attention first": 0.14}  # true accuracies of the others
BEST_RATIO, CURVATURE, FLOOR = 2.0, 0.05, 1.62  # of curves(): attention layers, nats per (log2)^2, nats
PLACEMENTS = {"even": 0.0, "middle": 0.004, "end": 0.03, "front": 0.09}  # nats that each adds
FACTS = {"steps": STEPS, "seconds": 21.0, "device": "cpu"}


def arm(name: str, pattern: str, changes: dict[str, Any] | None = None, **coordinates: Any) -> Arm:
    """An arm of a small model."""
    spec = _spec(pattern)
    cost = arm_cost(spec, 64, 2048)
    residual = (zlib.crc32(name.encode(errors="replace")) % 90 - 45) / 1e4
    given = {"pattern": pattern} if changes is None else changes
    return Arm(name=name, changes=given, spec=spec, coordinates=coordinates, cost=cost, residual=residual)


@cache
def _spec(pattern: str) -> ModelSpec:
    return plan(ModelSpec(pattern=pattern, d_model=64, vocab_size=128)).spec


def study(arms: list[Arm], **changes: Any) -> Study:
    """A study of these arms on a task; the first is the reference."""
    given = {
        "name": "recall-rescue",
        "question": "Does one attention layer rescue the recall of a stack of state-space layers?",
        "baseline": arms[0].spec,
        "arms": tuple(arms),
        "reference": arms[0].name,
        "match": Match(to="params", by="mlp", of=arms[0].name),
        "data": MQAR,
        "eval": (Data(name="long", task="mqar", params={"pairs": 16, "length": 128}),),
        "train": Train(steps=STEPS, stop_at=StopAt(metric="accuracy", value=0.98)),
        "lr": RATES,
        "seeds": 5,
        "budget": None,
        "claims": (),
        "source": {"name": "recall-rescue", "seeds": 5},
    }
    return Study(**given | changes)


Found = Callable[[Study, Arm, int, float], Result | str]
"""What a trial found, or why it has no result."""


def results(of: Study, found: Found) -> Results:
    """Every trial of every arm."""
    table, missing = [], []
    for trial in of.trials():
        result = found(of, trial.arm, trial.seed, trial.lr)
        if isinstance(result, str):
            missing.append(Missing(trial.arm.name, trial.seed, trial.lr, trial.key, result))
        else:
            table.append(replace(result, key=trial.key).row(trial.arm.name))
    return Results(of, table, missing)


def random_of(*names: object) -> np.random.Generator:
    """A stream of its own for each."""
    return np.random.default_rng([zlib.crc32(str(name).encode(errors="replace")) for name in names])


# -------------------------------------------------------------------------------------------------------------- recall
def recall(**changes: Any) -> Results:
    """Six arms, three of which solve the task, two trials that crashed, one that diverged."""
    arms = [
        arm("hybrid", "MA"),
        arm("mamba2", "MM"),
        arm("wide state", "M{d_state: 64}M{d_state: 64}", {"blocks.M.mixer.d_state": 64}),
        arm("attention alone", "A"),
        arm("convolution, then attention", "CA", {"blocks.M.mixer.type": "short_conv"}),
        arm("attention first", "AM"),
    ]
    claims = (
        Claim(name="hybrid solves it", metric="accuracy", arm="hybrid", at_least=0.9, seeds=4),
        Claim(name="pure stays behind", metric="accuracy", arm="mamba2", at_most=0.8),
        Claim(name="hybrid beats pure", metric="accuracy", arm="hybrid", over="mamba2", by=0.1),
        Claim(name="attention alone is enough", metric="accuracy", arm="attention alone", at_least=0.9, seeds=4),
        Claim(name="it is the SSM", metric="accuracy", arm="hybrid", over="convolution, then attention", by=0.01),
    )
    return results(study(arms, **{"claims": claims, **changes}), solved_or_not)


def solved_or_not(of: Study, arm: Arm, seed: int, lr: float) -> Result | str:
    """Bimodal: an arm that can solves it at a late transition, another stays at its ceiling."""
    if (arm.name, lr) == ("attention first", RATES[-1]) and seed < 2:
        return "it crashed: RuntimeError: out of memory"
    random = random_of(arm.name, seed)
    rate = abs(math.log2(lr / 2e-3))
    median = SOLVE_STEP.get(arm.name, math.inf) * (1 + 0.5 * rate) * random.lognormal(0, 0.3)
    ceiling = CEILING.get(arm.name, 0.55) + random.normal(0, 0.02) - 0.02 * rate
    curve = [(step, _at(step, median, ceiling, random)) for step in range(EVERY, STEPS + 1, EVERY)]
    solved = next((step for step, metrics in curve if metrics["accuracy"] >= 0.98), None)
    final = curve[-1][1]
    return Result(
        **FACTS,
        key="",
        seed=seed,
        lr=lr,
        final=final,
        evals={"long": {name: value * 0.9 for name, value in final.items()}},
        curve=curve,
        solved_at=solved,
        diverged_at=700 if (arm.name, lr, seed) == ("mamba2", RATES[-1], 3) else None,
        knockouts=dict(_knockouts(arm, final, random)),
    )


def _at(step: int, solved: float, ceiling: float, random: np.random.Generator) -> dict[str, float]:
    done = 1 / (1 + math.exp((solved - step) / 40)) if math.isfinite(solved) else 0.0
    accuracy = done * 0.998 + (1 - done) * ceiling * (1 - math.exp(-step / 300)) + random.normal(0, 5e-4)
    return {"loss": 4.2 * (1 - accuracy) + 0.01, "accuracy": accuracy, "solved": done**2}


def _knockouts(
    arm: Arm, final: dict[str, float], random: np.random.Generator
) -> Iterator[tuple[str, dict[str, float]]]:
    """The last layer is what matters."""
    if arm.name in ("hybrid", "mamba2"):
        for branch, left in {"0.mamba2.zero": 0.7, "1.attention.zero": 0.13, "1.attention.mean": 0.2}.items():
            accuracy = final["accuracy"] * left + random.normal(0, 0.01)
            yield branch, {"accuracy": accuracy, "loss": 4.2 * (1 - accuracy), "solved": 0.0}


# -------------------------------------------------------------------------------------------------------------- curves
def curves(**changes: Any) -> Results:
    """Loss of 12 layers by attention layers and placement: a parabola in log2(count + 1), lowest at BEST_RATIO."""
    arms = [_placed(count, place) for count in (0, 1, 2, 3, 6, 12) for place in PLACEMENTS]
    given = {
        "name": "ratio-curve",
        "question": "How much attention does a language model of twelve layers need, and where?",
        "reference": "ratio=2,placement=even",
        "data": Data(text="stdlib", context=256),
        "eval": (),
        "train": Train(steps=STEPS),
        "seeds": 3,
        "lr": (1e-3, 2e-3, 4e-3),
        "claims": (Claim(name="best ratio", metric="loss", axis="ratio", argmin_between=(1, 3)),),
    }
    return results(study(arms, **given | changes), smooth)


def _placed(count: int, place: str) -> Arm:
    held = set(indices(place, 12, count))
    pattern = "".join("A" if i in held else "M" for i in range(12))
    return arm(f"ratio={count},placement={place}", pattern, ratio=count, placement=place)


def smooth(of: Study, arm: Arm, seed: int, lr: float) -> Result:
    """Loss by arm, plus what the seed adds to all, plus a little that is its own."""
    away = math.log2((arm.coordinates["ratio"] + 1) / (BEST_RATIO + 1))
    loss = FLOOR + CURVATURE * away**2 + PLACEMENTS[arm.coordinates["placement"]] + 0.02 * abs(math.log2(lr / 2e-3))
    loss += random_of("seed", seed).normal(0, 0.01) + random_of(arm.name, seed, lr).normal(0, 0.002)
    curve = [(step, _text(loss + 3 * math.exp(-step / 300))) for step in range(EVERY, STEPS + 1, EVERY)]
    return Result(**FACTS, key="", seed=seed, lr=lr, final=_text(loss), curve=curve)


def _text(loss: float) -> dict[str, float]:
    return {"loss": loss, "bits_per_byte": loss / math.log(2)}


# --------------------------------------------------------------------------------------------------- large and hostile
def large(arms: int = 60, seeds: int = 10) -> Results:
    """Many arms of 24 layers, every one with curves and knock-outs of every layer."""
    made = [arm(f"width={i % 10},kind={i // 10}", "MMMA" * 6, width=i % 10, kind=f"k{i // 10}") for i in range(arms)]

    def found(of: Study, one: Arm, seed: int, lr: float) -> Result:
        result = solved_or_not(of, replace(one, name="hybrid"), seed, lr)
        accuracy = 0.8 + 0.01 * one.coordinates["width"] + random_of(one.name, seed, lr).normal(0, 0.02)
        knockouts = {
            f"{i}.{'attention' if i % 4 == 3 else 'mamba2'}.zero": {"accuracy": accuracy * 0.9} for i in range(24)
        }
        return replace(result, final={**result.final, "accuracy": accuracy}, knockouts=knockouts)

    return results(study(made, seeds=seeds, name="large"), found)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://x.example","y")',
    "a | b `c` **d** [e](javascript:f) $x_1$",
    "nul\x00 esc\x1b[31m bell\x07 \u202etxet\u202c",
    "../../etc/passwd",
    "ünï çødé 模型 \ud800",
    "</style></svg></title>]]>",
)


def hostile() -> Results:
    """Names that try to be something else, wherever a study may say one."""
    made = [arm(name, "MA" if i % 2 else "MM", {name: name}, **{name: i}) for i, name in enumerate(HOSTILE)]
    claims = tuple(Claim(name=name, metric="accuracy", arm=name, at_least=0.9, seeds=1) for name in HOSTILE)

    def found(of: Study, one: Arm, seed: int, lr: float) -> Result | str:
        if seed == 0 and lr == RATES[0]:
            return f"it crashed: {one.name}"
        result = solved_or_not(of, replace(one, name="hybrid"), seed, lr)
        knockouts = {name: {"accuracy": 0.1} for name in HOSTILE[:2]}
        evals = {HOSTILE[0]: result.final}
        return replace(result, knockouts=knockouts, evals=evals, device=HOSTILE[1])

    text = " ".join(HOSTILE)
    extra = {"name": HOSTILE[0], "question": text, "claims": claims, "warnings": (text,), "source": {"name": "<b>"}}
    tests = (Data(name=HOSTILE[0], task=HOSTILE[1], params={HOSTILE[2]: HOSTILE[3]}),)
    return results(study(made, **extra, eval=tests, seeds=3), found)
