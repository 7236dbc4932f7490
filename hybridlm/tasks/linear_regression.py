"""In-context linear regression: points of a linear function that is drawn anew for each sample.

    x_1  y_1  x_2  y_2  ...  x_n      at each x_i the answer is y_i = w x_i (+ noise)

As in Garg et al. 2022 (arXiv 2208.01066, sections 2 and 3): w and x are standard normal; y stands in the first channel,
with zeros behind it. Least squares over the points before gets everything right from the (dims + 1)-th point on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybridlm.tasks.difficulty import LONGEST, within
from hybridlm.tasks.task import Sample, Task


@dataclass(frozen=True, kw_only=True)
class LinearRegression(Task):
    """The value of a linear function at each point, from the points before it.

    dims:   of x and of w: numbers that the model reads at each position.
    points: pairs of x and y; the last y is not read.
    noise:  standard deviation of what is added to each y.

    Published: dims 20, points 41, without noise. Guessing is 0, the best constant, whose squared error is
    dims + noise^2.
    """

    name: ClassVar[str] = "linear_regression"
    kind: ClassVar[str] = "numbers"
    outputs: ClassVar[int] = 1
    dims: int = within(20, 1, 4096)
    points: int = within(41, 1, LONGEST // 2)
    noise: float = within(0.0, 0.0, 1e6)

    @property
    def length(self) -> int:
        return 2 * self.points - 1

    @property
    def channels(self) -> int:
        """Numbers at a position."""
        return self.dims

    def draw(self, random: np.random.Generator) -> Sample:
        weights = random.standard_normal(self.dims)
        x = random.standard_normal((self.points, self.dims)).astype(np.float32)
        y = (x @ weights + self.noise * random.standard_normal(self.points)).astype(np.float32)
        inputs = np.zeros((self.length, self.dims), dtype=np.float32)
        inputs[::2], inputs[1::2, 0] = x, y[:-1]
        targets = np.full((self.length, 1), np.nan, dtype=np.float32)
        targets[::2, 0] = y
        return {"inputs": inputs, "targets": targets}

    def guess(self) -> float:
        return self.dims + self.noise**2
