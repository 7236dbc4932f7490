"""How long a study will take: its steps timed on this machine, or from FLOPs for a GPU, before anything runs.

Of a budget in minutes, one step of every shape of model is timed here, on one thread of the CPU: a batch drawn,
forward, backward, AdamW; and the reading of a held-out batch. It counts CPU time, so that other work on the machine
does not matter. Of a budget in GPU hours nothing is timed: the steps of a pack, which is one CUDA graph (captured.py),
and the readings of held-out samples take their FLOPs over a rate, and no less than a time a layer that is spent on
kernels too small to fill a GPU.

The constants rest on what 30 packs took on H200s that they shared with one another and with other work: 20 of four
studies (docs/studies) and 10 whose steps were timed apart. Small models take 0.5 to 1.4 ms a member and layer,
whatever the mixer; the studies of 20 members and two layers 22 to 43 ms a step, those of 12 members and twelve layers
138 to 178, compiled. Twelve members of 11.7M parameters got through 4.4e13 (attention) to 9.4e13 (Mamba-2) bf16 FLOPs
a second, and in float32, without TF32, through 2.4e13 as they were read; knock-outs, which are read in TF32, through
5e13. What is predicted is 1.3 to 1.7 times what these studies took. FFTs are bound by memory: twelve members with
twelve layers of H3 took 1.9 s a step when it convolved k v^T in float64, 2.3e11 FLOPs of its FFTs a second. What is
left of them is in float32, half the bytes, which is taken for twice the rate.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hybridlm.ablate.arms import Arm
from hybridlm.ablate.measure import CHUNK, EVAL_TOKENS
from hybridlm.ablate.parts import Data
from hybridlm.ablate.study import Study
from hybridlm.ablate.subject import length_of
from hybridlm.compose.build import build
from hybridlm.compose.cost import BACKWARD, model_cost
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError
from hybridlm.tasks.data import TaskData
from hybridlm.train.optim import adamw
from hybridlm.train.samples import Batch, inputs_of

MOST = 4e9
"""FLOPs of a timed step; where a step is more, part of its batch is timed."""
MOST_OF_ONE = 4e10
"""FLOPs of a single sample that is timed; of a longer one the beginning is, and the rest follows from FLOPs."""
TIMED = 3
"""Steps that are timed after the first, of which the fastest counts."""
ENOUGH = 1.0
"""Seconds after which no more are timed."""
GPU_RATE = {"float32": 2.0e13, "tf32": 4.0e13, "bf16": 5.0e13}
"""FLOPs a second that the members of a pack get out of an H200 together, well below its peak."""
KERNELS = 1.2e-3
"""Seconds a member, layer and step of a pack on a GPU, forward, backward and AdamW, however small they are."""
FFT_RATE = 4.6e11
"""The same of FFTs."""
LAUNCHES = 5.0e-3
"""Seconds a layer and batch that are read on a GPU, which is no graph: launches, hooks, a wait for the host."""
BEGIN = 10.0
"""Seconds until a pack on a GPU takes its first step: a process, a context, the first kernels."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one training step, of drawing its batch, and of reading one held-out batch of the same size."""

    step: float
    draw: float
    read: float


@dataclass(frozen=True)
class Prediction:
    """What a study will take at the most: `stop_at` may end runs early.

    arms:    {arm: seconds of all of its runs}; of a CPU on one core, of a GPU alone on it.
    seconds: of wall clock on the cores of the budget, or of GPUs together.
    basis:   what was measured, or what it is computed from.
    """

    arms: Mapping[str, float]
    seconds: float
    basis: str


def predict(study: Study) -> Prediction:
    """The time of a whole study. Takes about two seconds for every shape of model."""
    first = {arm.spec: arm for arm in reversed(study.arms)}
    own = [arm for arm in study.arms if first[arm.spec] is arm]
    if study.budget is not None and study.budget.gpu_hours is not None:
        arms = {arm.name: _gpu_seconds(study, arm) for arm in own}
        rate = f"{GPU_RATE[study.train.precision]:.0e} FLOPs a second and {KERNELS * 1e3:g} ms a run, layer and step"
        return Prediction(_all(study, arms, first), sum(arms.values()), f"from FLOPs: {rate} at least, on one H200")
    alike = {_shape(arm.spec): arm for arm in own}
    with _one_thread():
        timings = {shape: time_arm(study, arm) for shape, arm in alike.items()}
    arms = {arm.name: _cpu_seconds(study, arm, timings[_shape(arm.spec)]) for arm in own}
    cores = (study.budget and study.budget.cores) or os.cpu_count() or 1
    longest = max(arms.values()) / study.seeds  # the learning rates of a seed run one after another
    seconds = max(sum(arms.values()) / cores, longest)
    basis = (
        f"a step of each of {len(alike)} shapes of models was timed here, on one thread; {cores} cores share the runs"
    )
    return Prediction(_all(study, arms, first), seconds, basis)


def _shape(spec: ModelSpec) -> tuple:
    """What decides the time of a step: its layers, but not their order."""
    about = {key: value for key, value in spec.to_dict().items() if key != "pattern"}
    return json.dumps(about, sort_keys=True), tuple(sorted(layer.name for layer in plan(spec).layers))


def _all(study: Study, arms: Mapping[str, float], first: Mapping[ModelSpec, Arm]) -> dict[str, float]:
    """With 0 for the arms that share the runs of others."""
    return {arm.name: arms[arm.name] if first[arm.spec] is arm else 0.0 for arm in study.arms}


def _rates(study: Study) -> int:
    """Learning rates of an arm, with all that may be added at either end."""
    return len(study.lr) + 2 * study.widen


def require_budget(study: Study, predicted: Prediction) -> None:
    """SpecError unless the study fits into its budget, with what would."""
    budget = study.budget
    if budget is None or predicted.seconds <= budget.seconds:
        return
    fit = int(study.train.steps * budget.seconds / predicted.seconds)
    steps = f"Lower train.steps to {fit:,}, take" if fit else "Take"
    raise SpecError(
        f"budget: the study takes {readable_time(predicted.seconds)} ({predicted.basis}), and the budget is "
        f"{readable_time(budget.seconds)}. {steps} arms, seeds or learning rates out, raise the budget, or run it with "
        "--over-budget"
    )


# ------------------------------------------------------------------------------------------------------------ on a CPU
def time_arm(study: Study, arm: Arm) -> Timing:
    """One step of training of an arm, timed here and now."""
    size, length = study.train.batch_size, length_of(study.data)
    flops = arm.cost.flops_train * length
    rows = max(1, min(size, int(MOST / flops)))
    began = time.process_time()
    batch = _batch(study.data, arm.spec, rows)
    draw = time.process_time() - began
    more = 1.0  # as many times the FLOPs of what is timed
    if (short := max(1, int(length * MOST_OF_ONE / flops))) < length:
        batch = {name: tensor[:, :short] for name, tensor in batch.items()}
        more = flops / (model_cost(arm.spec).training(short).total * short)
    model = build(arm.spec, seed=0)
    optimizer = adamw(model, lr=study.lr[0], weight_decay=study.train.weight_decay, betas=(0.9, 0.95))

    def step() -> None:
        model(inputs_of(batch), **_marks(batch), targets=batch["targets"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def read() -> None:
        model(inputs_of(batch), **_marks(batch), targets=batch["targets"])

    scale = size / rows
    return Timing(_fastest(step) * scale * more, draw * scale, _fastest(read) * scale * more)


def _fastest(work) -> float:
    """CPU seconds of the fastest of a few calls, after one that warms up."""
    began = time.process_time()
    work()
    times = [time.process_time() - began]
    while len(times) <= TIMED and sum(times) < ENOUGH:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times[1:] or times)


def _batch(data: Data, spec: ModelSpec, rows: int) -> Batch:
    """A batch as training draws it; of text, random ids of the right shape, as reading text costs nothing."""
    if data.task:
        source = TaskData(data.task, dict(data.params), batch_size=rows)
        return next(iter(source.training_samples(0, 0, 1)))
    ids = torch.randint(spec.vocab_size, (rows, data.context))
    return {"ids": ids, "targets": ids}


def _marks(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("valid", "segment_ids") if name in batch}


def _cpu_seconds(study: Study, arm: Arm, timing: Timing) -> float:
    """All runs of an arm on one core. Seeds draw their own batches, which learning rates share."""
    train, runs = study.train, study.seeds * _rates(study)
    training = train.steps * (timing.step + timing.draw / len(study.lr))
    return runs * (training + timing.read * _readings(study, arm) / train.batch_size)


def _readings(study: Study, arm: Arm) -> float:
    """Samples of the training length that a run reads without gradients: tests on the way, at the end, knock-outs."""
    cost, length = model_cost(arm.spec), length_of(study.data)
    lengths = [(test.held_out, length_of(test)) for test in study.eval]
    tests = sum(n * cost.forward(t).total / cost.forward(length).total for n, t in lengths)
    return study.data.held_out * (_on_the_way(study) + _knocked_out(arm)) + tests


def _on_the_way(study: Study) -> int:
    """How often a run reads its held-out samples in training."""
    return -(-study.train.steps // study.train.eval_every)


def _knocked_out(arm: Arm) -> float:
    """How often it reads them for knock-outs, all layers alike: once for the means; then every layer but the last one
    once, as what it gives is kept; and for each branch that layer and those above it, without it and with its mean."""
    layers = model_cost(arm.spec).layers
    above = sum(2 * len(layer.mixers) * (len(layers) - i) for i, layer in enumerate(layers))
    return 1 + (len(layers) - 1 + above) / len(layers)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------ on a GPU
def _gpu_seconds(study: Study, arm: Arm) -> float:
    """All runs of an arm as one pack on a GPU: members share it, but neither FLOPs nor kernels."""
    train, length, runs = study.train, length_of(study.data), study.seeds * _rates(study)
    flops = arm.cost.flops_train * length * train.batch_size * runs
    kernels = KERNELS * len(model_cost(arm.spec).layers) * runs
    transforms = BACKWARD * model_cost(arm.spec).forward(length).fft * train.batch_size * runs
    step = max(flops / GPU_RATE[train.precision], transforms / FFT_RATE, kernels)
    tests = [(study.data, _on_the_way(study)), *((test, 1) for test in study.eval)]
    reading = sum(times * _reading(arm, data) for data, times in tests)
    reading += _knocked_out(arm) * _reading(arm, study.data, "tf32")
    return BEGIN + train.steps * step + runs * reading


def _reading(arm: Arm, data: Data, precision: str = "float32") -> float:
    """The held-out samples of data once by one run on a GPU: a long sample in pieces of CHUNK."""
    cost, length = model_cost(arm.spec), length_of(data)
    batches = -(-data.held_out // max(1, EVAL_TOKENS["cuda"] // length)) * -(-length // CHUNK)
    return max(data.held_out * cost.forward(length).total / GPU_RATE[precision], LAUNCHES * batches * len(cost.layers))


def readable_time(seconds: float) -> str:
    """45 s, 12 min, 3.5 h"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
