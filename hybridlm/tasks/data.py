"""TaskData: samples of a task for training, and others for validation. Sample i is a function of (seed, i)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError
from hybridlm.tasks.metrics import TaskScore
from hybridlm.tasks.task import HELD_OUT, TRAINING, Sample, Samples, Task, make, stack
from hybridlm.text import FileCodec
from hybridlm.train.samples import Batch, HeldOutSamples, SampleStream, StepData, require_counts


class TaskData(StepData):
    """Samples of a task with known answers: generated, endless, the same everywhere.

    Args:
        task: name of a registered task, such as mqar.
        params: its difficulty, by the names of its fields; what is not said has the task's own default.
        held_out: how many samples validation sees; training never sees them.
        batch_size: samples in a batch of one device.
        seed: of all that is drawn.
        workers: processes that draw ahead. Any number gives the same batches.
        tokenizer: of a task of text: "bytes", or a tokenizer.json.

    A batch has ids and targets (b, t) int64, or inputs (b, t, channels) and targets (b, t, outputs) float32, of the
    task's length t; where a sample is shorter, it is padded on the right, and the batch has valid (b, t) bool.
    Raises SpecError (all problems of a task at once) and DataError.
    """

    def __init__(
        self,
        task: str = "mqar",
        params: dict[str, Any] | None = None,
        held_out: int = 1000,
        batch_size: int = 64,
        seed: int = 0,
        workers: int = 0,
        tokenizer: str = "bytes",
    ) -> None:
        super().__init__(batch_size, workers)
        require_counts(held_out=(held_out, 1), batch_size=(batch_size, 1), workers=(workers, 0))
        self.tokenizer_path = None if tokenizer == "bytes" else Path(tokenizer).expanduser()
        self.task = make(task, params, FileCodec(self.tokenizer_path) if self.tokenizer_path else None)
        self.held_out, self.seed = held_out, seed
        self.samples = Samples(self.task, seed)
        for family in (TRAINING, HELD_OUT):
            self.samples.sample(family, 0)  # SpecError now, not in the middle of a run, if there is none

    def require(self, spec: ModelSpec, path: str) -> None:
        """A model that reads and answers what the task asks."""
        if problems := misfits(self.task, spec):
            raise DataError("\n".join(f"{path}: {problem}" for problem in problems))

    def score(self, spec: ModelSpec) -> TaskScore:
        """Accuracy and solved, or squared error, beside the guess."""
        return TaskScore(spec, self.task)

    def collate(self, drawn: list[Sample]) -> Batch:
        return stack(drawn, self.task.length)

    def training_samples(self, start: int, rank: int, world: int) -> SampleStream:
        """Samples without end."""
        return SampleStream(partial(self.samples.batch, TRAINING), self.batch_size, start, rank, world)

    def held_out_samples(self, shuffled: bool) -> HeldOutSamples:
        """The first `held_out` samples of the family that training never sees."""
        return HeldOutSamples(partial(self.samples.sample, HELD_OUT), self.held_out, shuffled)


def misfits(task: Task, spec: ModelSpec) -> list[str]:
    """What keeps a model of this spec from a task, a sentence each: its ends, or their sizes."""
    return _token_misfits(task, spec) if task.kind == "tokens" else _number_misfits(task, spec)


def _token_misfits(task: Task, spec: ModelSpec) -> list[str]:
    asks, wanted = "at some positions", "head: lm (or head: {type: classify, pool: none})"
    heads = ("lm", "classify")
    if task.recovers:
        asks, wanted = "of the last vector", f"head: {{type: recover, classes: {task.vocab_size}}}"
        heads = ("recover",)
    if not spec.reads_tokens or spec.output.type not in heads or spec.output.pool != "none":
        return [f"{task.name} asks tokens {asks}: it needs embed: tokens and {wanted}, not {_ends(spec)}"]
    sizes = {"vocab_size": spec.vocab_size, "head.classes": spec.outputs}
    return [
        f"{name}: {size}, and {task.name} has ids up to {task.vocab_size - 1}; at least {task.vocab_size} are needed"
        for name, size in sizes.items()
        if size < task.vocab_size and not (name == "head.classes" and spec.head == "lm")
    ]


def _number_misfits(task: Task, spec: ModelSpec) -> list[str]:
    wanted = f"embed: {{type: linear, channels: {task.channels}}} and head: {{type: regress, outputs: {task.outputs}}}"
    if spec.input.type != "linear" or spec.output.type != "regress" or spec.output.pool != "none":
        return [f"{task.name} asks numbers at some positions: it needs {wanted}, not {_ends(spec)}"]
    sizes = {"embed.channels": (spec.input.channels, task.channels), "head.outputs": (spec.outputs, task.outputs)}
    return [
        f"{name}: {ours}, and {task.name} has {theirs}; make them the same"
        for name, (ours, theirs) in sizes.items()
        if ours != theirs
    ]


def _ends(spec: ModelSpec) -> str:
    return f"embed: {spec.embed} and head: {spec.head}"
