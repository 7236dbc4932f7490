"""What is measured of a language model: negative log-likelihood per token, perplexity, bits per byte, tokens/s, MFU."""

from __future__ import annotations

import math
import time
from collections import deque

import torch
from torch import Tensor
from torchmetrics import Metric


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
        """loss (): mean NLL in nats over the targets (b, t) that are not -100."""
        tokens = (targets != -100).sum()
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
