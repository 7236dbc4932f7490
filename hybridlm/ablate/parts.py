"""The sections of a study file as frozen dataclasses: data, training, budget, match, claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LOWER_IS_BETTER = ("loss", "bits_per_byte", "solved_at")
TASK_METRICS = ("accuracy", "solved", "loss", "solved_at")
TEXT_METRICS = ("loss", "bits_per_byte")
HELD_OUT = 1000

By = Literal["mlp", "d_model"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained or tested on: a task with known answers, or text.

    name:      of a test, under which its metrics stand; of the training data "".
    task:      registered name of a task; None for text.
    params:    the task's difficulty, by its fields.
    text:      a path or a glob, or stdlib for the source of Python's standard library; None for a task.
    context:   tokens of a window of text.
    tokenizer: bytes, or the file of a tokenizer.
    held_out:  samples that are tested on; of text, windows at the most.
    """

    name: str = ""
    task: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    context: int = 256
    tokenizer: str = "bytes"
    held_out: int = HELD_OUT

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured on it."""
        return TASK_METRICS if self.task else TEXT_METRICS


@dataclass(frozen=True, kw_only=True)
class StopAt:
    """Training ends early where the held-out metric gets there."""

    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Train:
    """How every arm is trained, but for its learning rate.

    steps:        of AdamW.
    batch_size:   samples a step.
    warmup:       steps of linear warm-up.
    schedule:     cosine, wsd or constant.
    final_lr:     where the schedule ends, as a share of the peak.
    weight_decay: of matrices.
    clip:         norm of the gradient at the most; None: any.
    eval_every:   steps between two tests on the held-out part of the data.
    stop_at:      ends a run early, or None.
    precision:    float32, or bf16 for autocast.
    """

    steps: int
    batch_size: int = 64
    warmup: int = 100
    schedule: str = "cosine"
    final_lr: float = 0.0
    weight_decay: float = 0.1
    clip: float | None = 1.0
    eval_every: int = 100
    stop_at: StopAt | None = None
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the whole study may take.

    minutes:   of wall clock, on `cores` cores of a CPU (default: those of the machine);
    gpu_hours: or hours of a GPU, summed over GPUs.
    """

    minutes: float | None = None
    cores: int | None = None
    gpu_hours: float | None = None

    @property
    def seconds(self) -> float:
        """Of wall clock on the cores, or of GPUs together."""
        return self.minutes * 60 if self.gpu_hours is None else self.gpu_hours * 3600


@dataclass(frozen=True, kw_only=True)
class Match:
    """In what the arms are to agree, and what is changed for it.

    to:    params, flops_train, flops_infer or cache_bytes.
    at:    length in tokens of flops_infer and cache_bytes; None otherwise.
    by:    mlp: the width of its MLPs; d_model: the width of the model.
    of:    the arm that stays as it is and that the others are made to match; or {axis: value, ...}: each arm is matched
           with the arm that has these values and otherwise its own.
    """

    to: str
    at: int | None = None
    by: By = "mlp"
    of: str | Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.to}@{self.at}" if self.at else self.to


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that the study puts to the test, with the bar that it must pass.

    One of these says what is claimed:
      arm, at_least or at_most    of the metric: in `seeds` of the seeds (default: all of them)
      arm, over, by               the paired difference of two arms, better by more than `by`: its interval lies above
      axis, argmin_between        where along a numeric axis the metric is best
      arms, increasing            each arm better than the one before by more than `increasing`

    name:   the claim's, once in a study.
    metric: accuracy, solved, loss, bits_per_byte or solved_at (steps until stop_at), of the held-out part of the data;
            of another test with its name before a dot, as in long.accuracy.
    needs:  names of claims without which this one is undetermined.
    """

    name: str
    metric: str
    arm: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    seeds: int | None = None
    over: str | None = None
    by: float | None = None
    axis: str | None = None
    argmin_between: tuple[float, float] | None = None
    arms: tuple[str, ...] = ()
    increasing: float | None = None
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """bar, difference, argmin or trend."""
        if self.over is not None:
            return "difference"
        return "argmin" if self.axis is not None else "trend" if self.arms else "bar"

    @property
    def measure(self) -> str:
        """The metric without the name of its test."""
        return self.metric.rpartition(".")[2]

    @property
    def higher_is_better(self) -> bool:
        """Of its metric."""
        return self.measure not in LOWER_IS_BETTER


def plain(value: Any) -> Any:
    """Mappings, lists and scalars, without what is None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
