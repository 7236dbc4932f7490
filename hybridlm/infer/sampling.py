"""From logits to one token a row: small functions on (b, v), and `Sampler`, the pipeline that they form.

Every filter takes logits and returns logits, with -inf for the tokens that it removes; each keeps the best token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridlm.checks import real, whole
from hybridlm.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the next token is chosen. Temperature 0, the default, is greedy: the best token, no chance involved.

    temperature:        T >= 0; logits are divided by it. The filters need T > 0: at 0 they would change nothing.
    top_k:              keep the k best tokens; None: all.
    top_p:              keep the fewest best tokens whose probabilities add up to p, in [0, 1]; None: all.
    min_p:              keep tokens at least p times as probable as the best, p in [0, 1]; None: all.
    repetition_penalty: above 1 makes tokens that were seen less probable, below 1 more; 1: none. Greedy obeys it too.

    SpecError: a value out of range, or a filter at temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        real("temperature", self.temperature, 0.0, 1e6)
        real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.top_k is not None:
            whole("top_k", self.top_k)
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name), 0.0, 1.0)
        idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if idle and self.temperature == 0:
            raise SpecError(
                f"{idle[0]}: {getattr(self, idle[0])} does nothing at temperature 0, which takes the best token; "
                f"set temperature (0.8, say), or leave {idle[0]} out"
            )

    def __call__(self, logits: Tensor, seen: Tensor, draws: Draws) -> Tensor:
        """logits (b, v), seen (b, v) bool -> (b,) int64. draws moves on by one step unless this is greedy."""
        return self.choose(logits, seen, None if self.greedy else draws.step())

    def choose(self, logits: Tensor, seen: Tensor | None, uniform: Tensor | None) -> Tensor:
        """The same for numbers (b,) in [0, 1) that are there already. Waits for nothing, so that a graph can hold it.

        seen: None where there is no penalty; uniform: None where this is greedy.
        """
        logits = penalise(logits, seen, self.repetition_penalty)
        return logits.argmax(dim=-1) if self.greedy else draw(self.filter(logits), uniform)

    @property
    def greedy(self) -> bool:
        """Whether chance has no part in it."""
        return self.temperature == 0

    @property
    def remembers(self) -> bool:
        """Whether it asks which tokens were there before."""
        return self.repetition_penalty != 1

    def filter(self, logits: Tensor) -> Tensor:
        """The temperature, then each filter that is set. (b, v) -> (b, v) in at least float32."""
        logits = scale(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits


class Draws:
    """One uniform number for each row and step, from a stream of the row's own.

    Row i draws from a generator seeded with seed + i, or seeds[i]. So a row's n-th number depends on its seed and n
    alone, not on the other rows, and row i of a batch equals the same prompt run alone with seed + i.
    """

    def __init__(self, seed: int | Sequence[int], rows: int):
        seeds = [seed + row for row in range(rows)] if isinstance(seed, int) and seed is not True else seed
        if not isinstance(seeds, list | tuple) or len(seeds) != rows:
            raise SpecError(f"seed: {seed!r}; it must be an integer, or a list of one for each of the {rows} rows")
        highest = (1 << 63) - 1
        self.generators = [torch.Generator().manual_seed(whole("seed", each, 0, highest)) for each in seeds]

    def step(self) -> Tensor:
        """(b,) float64 in [0, 1), on the CPU, so that a seed means the same on every device."""
        return self.steps(1)[0]

    def steps(self, count: int) -> Tensor:
        """(count, b): the numbers of as many steps."""
        return torch.stack([torch.rand(count, dtype=torch.float64, generator=one) for one in self.generators], dim=1)


def penalise(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Divide positive logits of seen tokens by the penalty, multiply negative ones: Keskar et al. 2019
    (arXiv:1909.05858), section 4.1, with the sign taken care of. logits (b, v), seen (b, v) bool."""
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def scale(logits: Tensor, temperature: float) -> Tensor:
    """logits / T in float64, shifted so that the best is 0: no T is too small for it."""
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k best tokens, and those that tie with the last of them."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The nucleus: the fewest best tokens of probability p in sum. Holtzman et al. 2020 (arXiv:1904.09751), eq. 2."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    better = probability.cumsum(dim=-1) - probability  # of all tokens before this one
    removed = (better >= p).index_fill(1, torch.zeros(1, dtype=torch.int64, device=logits.device), False)
    return logits.masked_fill(removed.scatter(1, order, removed), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens of at least p times the best one's probability. Nguyen et al. 2024 (arXiv:2407.01082), section 3."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(logits) at uniform (b,) in [0, 1): (b, v) -> (b,) int64.

    A token of probability 0 is never drawn: the cumulative sum does not rise there. Of NaN it makes a token too, as
    what looks at the logits may look later.
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    height = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, height, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
