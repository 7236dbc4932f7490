"""What is measured: loss, perplexity and bits per byte; accuracy and error beside what guessing gets; tokens/s."""

from __future__ import annotations

import math
import time
from collections import deque

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hybridlm.compose.model import Output
from hybridlm.compose.spec import ModelSpec
from hybridlm.ops.cross_entropy import IGNORED


class TokenScore(Metric):
    """Loss, perplexity and bits per byte over all tokens seen, however they were batched.

    Sums are kept in float64, so that the mean of millions of tokens is exact to every digit that is printed.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, targets: Tensor) -> None:
        """loss (): mean NLL in nats over the targets that are not -100, or mean error over those that are not NaN."""
        tokens = (~targets.isnan() if targets.is_floating_point() else targets != IGNORED).sum()
        if tokens > 0:
            self.nll += loss.double() * tokens
            self.tokens += tokens

    def compute(self) -> Tensor:
        """() mean NLL in nats."""
        return self.nll / self.tokens


def bits_per_byte(loss: float | Tensor, bytes_per_token: float) -> float | Tensor:
    """Nats per token -> bits per byte of text: comparable across tokenizers, and with a file compressor."""
    return loss / math.log(2) / bytes_per_token


class Rate:
    """Tokens per second over the last steps, without the time that validation took."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)
        self._last: float | None = None

    def pause(self) -> None:
        """The time from here to the next step is not training."""
        self._last = None

    def start(self) -> None:
        """A step begins, unless the previous one's end is the mark."""
        if self._last is None:
            self._last = time.perf_counter()

    def step(self, tokens: int) -> float:
        """A step ended. Returns tokens per second."""
        now = time.perf_counter()
        if self._last is not None:
            self._steps.append((tokens, now - self._last))
        self._last = now
        seconds = sum(duration for _, duration in self._steps)
        return sum(count for count, _ in self._steps) / seconds if seconds else 0.0


# ---------------------------------------------------------------------------------------- what a head is measured by
class Score(nn.Module):
    """A language model over all that was seen: loss and perplexity.

    unit: of the loss. answer: what a prediction is called. reads_answers: updated with logits, and no loss beside them.
    """

    unit, answer = "nats per token", "nll"
    reads_answers = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.loss = TokenScore()

    def update(self, out: Output, targets: Tensor) -> None:
        """Add the answers to a batch. targets as the model's head takes them, with none at pads."""
        self.loss.update(own_loss(out), targets)

    def measures(self) -> dict[str, Tensor]:
        """What it comes to, over every device's share."""
        loss = self.loss.compute().float()
        return {"loss": loss, "ppl": loss.exp()}

    def reset(self) -> None:
        """Begin anew."""
        for metric in self.children():
            metric.reset()


class ClassScore(Score):
    """A classifier: loss, accuracy, and the accuracy of always guessing the commonest class."""

    unit, answer = "nats per answer", "logits"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.accuracy = MulticlassAccuracy(spec.outputs, average="micro", ignore_index=IGNORED)
        self.guess = Commonest(spec.outputs)

    def update(self, out: Output, targets: Tensor) -> None:
        super().update(out, targets)
        self.accuracy.update(out.logits.flatten(0, -2), targets.flatten())
        self.guess.update(targets)

    def measures(self) -> dict[str, Tensor]:
        return {name: metric.compute().float() for name, metric in self.named_children()}


class NumberScore(Score):
    """A regression: mean squared error, and that of always answering with the mean of the targets."""

    unit, answer = "squared error", "values"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.guess = Spread(spec.outputs)

    def update(self, out: Output, targets: Tensor) -> None:
        super().update(out, targets)
        self.guess.update(targets)

    def measures(self) -> dict[str, Tensor]:
        return {name: metric.compute().float() for name, metric in self.named_children()}


SCORES = {"lm": Score, "classify": ClassScore, "regress": NumberScore, "recover": ClassScore}


def own_loss(out: Output) -> Tensor:
    """The head's own loss, without what routers ask for."""
    return out.squared_error if out.cross_entropy is None else out.cross_entropy


class Commonest(Metric):
    """The share of the commonest class: what guessing gets."""

    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, targets: Tensor) -> None:
        """targets: integers; -100 is none."""
        self.counts += torch.bincount(targets[targets != IGNORED], minlength=len(self.counts))

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        return self.counts.max() / self.counts.sum()


class Spread(Metric):
    """The mean squared distance of targets (..., outputs) from their mean: the error of the best constant answer."""

    full_state_update = False

    def __init__(self, outputs: int) -> None:
        super().__init__()
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros(outputs, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, targets: Tensor) -> None:
        """NaN is no target."""
        real, values = ~targets.isnan(), targets.double().nan_to_num(0.0)
        for name, parts in (("count", real.double()), ("total", values), ("squares", values.square())):
            setattr(self, name, getattr(self, name) + parts.flatten(0, -2).sum(dim=0))

    def compute(self) -> Tensor:
        """() of all numbers together."""
        apart = self.squares - self.total.square() / self.count.clamp(min=1)
        return apart.sum() / self.count.sum()
