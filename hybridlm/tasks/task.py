"""Task: a frozen dataclass that draws samples whose answers are known, and says what guessing gets.

Which family a sample belongs to is decided by its content: one in eight, by a hash of what the model reads, is held
out, and training never sees it, whatever the seeds. Sample i of a family is the first of the draws (seed, i, 0),
(seed, i, 1), ... that falls into it, so that it is a function of (seed, i) and of nothing else.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from hybridlm.errors import SpecError
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.registry import tasks
from hybridlm.tasks.difficulty import difficulty, unknown_fields, wrong_fields
from hybridlm.text import ByteCodec, Codec
from hybridlm.train.samples import Batch, mix

Sample = dict[str, np.ndarray]
"""ids (t,) int64 and targets (t,) int64, -100 where nothing is asked: targets[i] is the answer at position i.

Of numbers: inputs (t, channels) float32 and targets (t, outputs) float32, NaN where nothing is asked.
"""

TRAINING, HELD_OUT = 0, 1  # two families of samples that have none in common
SHARE = 8  # one sample in so many is held out
PATIENCE = 2000  # draws, until a family is found to have no sample


class Task(ABC):
    """What a registered task is. A subclass is a frozen, keyword-only dataclass: its fields are its difficulty.

    name:       under which it is registered.
    kind:       what it reads and answers with: tokens, or numbers.
    by_content: whether held-out samples are others than those of training; false only where the task is to know the
                training table by heart.
    recovers:   whether all answers are to come from the row's last vector, as `head: recover` gives them.
    axes:       two fields, (what goes up, what goes right), that a heat map shows; most tasks have none.

    Every field has a default, limits (`within`, `one_of`, `yes_or_no`) and a line in the docstring. Limits of several
    fields together are in `conflicts`. A task of tokens has vocab_size, one of numbers channels and outputs.
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["tokens", "numbers"]] = "tokens"
    by_content: ClassVar[bool] = True
    recovers: ClassVar[bool] = False
    axes: ClassVar[tuple[str, str] | None] = None

    vocab_size: int  # ids and answers are below it: a field or a property
    channels: int  # of the inputs, and
    outputs: int  # of the answers, of a task of numbers

    def __post_init__(self) -> None:
        """SpecError with every problem, a line each, that begins with the task's name and the field."""
        require_none(self.name, wrong_fields(self) or self.conflicts())

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of a sample, of the longest if they differ."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> Sample:
        """One sample, from nothing but what `random` gives."""

    @abstractmethod
    def guess(self) -> float:
        """The accuracy of the best guess that ignores the sequence; of numbers the squared error of the best constant.

        From the definition, not by measuring. Where a model without memory gets more by a cheap reading of the
        sequence, the task may say that instead, and says so in its docstring.
        """

    def conflicts(self) -> Iterable[str]:
        """A sentence for each rule of several fields together that does not hold: field, value, rule, fix."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A task whose samples are text. Whoever makes it gives the codec that the model was trained with."""

    codec: Codec = field(default=ByteCodec(), repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return self.codec.vocab_size


def make(name: str, params: Mapping[str, Any] | None = None, codec: Codec | None = None) -> Task:
    """The task of that name, at the difficulty that params say; codec: of text, if it is not bytes.

    SpecError: unknown name, or all problems at once.
    """
    cls = tasks.get(name)
    if not isinstance(params, Mapping | None):
        raise SpecError(f"{name}: {params!r}; the parameters of a task are a mapping, such as {{length: 64}}")
    params = params or {}
    unknown = list(unknown_fields(cls, params))
    given = {field.name: params[field.name] for field in difficulty(cls) if field.name in params}
    if codec is not None and issubclass(cls, TextTask):
        given["codec"] = codec
    try:
        task = cls(**given)
    except SpecError as error:
        said = [f"{name}.{problem}" for problem in unknown]
        raise SpecError("\n".join([*said, str(error)])) from None
    require_none(name, unknown)
    return task


def require_none(name: str, problems: Iterable[str]) -> None:
    """SpecError with all of the problems of a task, if there are any."""
    if said := [f"{name}.{problem}" for problem in problems]:
        raise SpecError("\n".join(said))


# ------------------------------------------------------------------------------------------------ families and batches
@dataclass(frozen=True)
class Samples:
    """The samples of a task under a seed, by family and number."""

    task: Task
    seed: int

    def sample(self, family: int, number: int) -> Sample:
        """Sample `number` of a family. SpecError: so few different samples exist that the family has none."""
        key = mix(self.seed, number)
        for attempt in range(PATIENCE):
            drawn = self.task.draw(np.random.default_rng(mix(key, attempt)))
            if not self.task.by_content or family_of(drawn) == family:
                return drawn
        which = "held-out" if family == HELD_OUT else "training"
        raise SpecError(
            f"{self.task.name}: {PATIENCE} draws gave no {which} sample: {self.task} has too few different ones; "
            "make it longer, or its vocabulary larger"
        )

    def batch(self, family: int, numbers: Iterable[int]) -> Batch:
        """Samples as one batch of the task's length; see `stack`."""
        return stack([self.sample(family, int(number)) for number in numbers], self.task.length)


def family_of(sample: Sample) -> int:
    """HELD_OUT or TRAINING, by a hash of what the model reads."""
    read = sample["ids"] if "ids" in sample else sample["inputs"]
    digest = hashlib.blake2b(np.ascontiguousarray(read).tobytes(), digest_size=8).digest()
    return HELD_OUT if int.from_bytes(digest, "little") % SHARE == 0 else TRAINING


def stack(drawn: list[Sample], length: int) -> Batch:
    """Samples -> a batch of tensors: ids or inputs, targets and, if a sample is shorter than `length`, valid (b, t).

    What is shorter is padded on the right: with 0, and with targets that ask nothing.
    """
    lengths = [len(sample["targets"]) for sample in drawn]
    batch = {name: torch.from_numpy(np.stack([_padded(s, name, length) for s in drawn])) for name in drawn[0]}
    if min(lengths) < length:
        batch["valid"] = torch.arange(length) < torch.tensor(lengths)[:, None]
    return batch


def _padded(sample: Sample, name: str, length: int) -> np.ndarray:
    """(t, ...) -> (length, ...)."""
    values = sample[name]
    if len(values) == length:
        return values
    nothing = 0 if name != "targets" else np.nan if values.dtype.kind == "f" else IGNORED
    rest = np.full((length - len(values), *values.shape[1:]), nothing, dtype=values.dtype)
    return np.concatenate([values, rest])
