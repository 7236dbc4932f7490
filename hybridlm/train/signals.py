"""SignalData: generated signals whose class is a band of frequencies. Sample i is a function of (seed, i).

A sample is a damped oscillation in every channel, with noise:

    x_c(t) = g_c e^{-r t} sin(2 pi f t + p_c) + white noise

f is drawn from the band of its class, r, gains g_c and phases p_c at random, so that only the frequency tells. The same
sample at another rate is the same function of time, sampled anew, under noise of the same power in every Hz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError
from hybridlm.train.samples import Batch, HeldOutSamples, SampleStream, StepData, inputs_of, mix, require_counts

TRAINING, HELD_OUT = 0, 1  # two families of samples that have none in common
INNER = 0.7  # of a band, in octaves, is used: neighbours keep apart


@dataclass(frozen=True, kw_only=True)
class Oscillations:
    """What a sample is drawn from; see SignalData."""

    classes: int
    channels: int
    rate: float
    seconds: float
    lowest: float
    highest: float
    noise: float
    seed: int

    @property
    def steps(self) -> int:
        """Samples of a channel."""
        return round(self.rate * self.seconds)

    def batch(self, family: int, numbers: np.ndarray) -> Batch:
        """(b,) sample numbers -> inputs (b, t, channels) float32 and targets (b,) int64, the classes."""
        drawn = [self.sample(family, number) for number in numbers.tolist()]
        inputs = torch.from_numpy(np.stack([signal for signal, _ in drawn]))
        return {"inputs": inputs, "targets": torch.tensor([label for _, label in drawn])}

    def held_out(self, number: int) -> Batch:
        """Held-out sample `number`, which training never sees: inputs (t, channels) and its target ()."""
        return {name: tensor[0] for name, tensor in self.batch(HELD_OUT, np.asarray([number])).items()}

    def sample(self, family: int, number: int) -> tuple[np.ndarray, int]:
        """(t, channels) float32, and its class. What is drawn first does not depend on the rate."""
        draw = np.random.default_rng(mix(mix(self.seed, family), number))
        label = int(draw.integers(self.classes))
        place = (label + 0.5 + INNER * (draw.random() - 0.5)) / self.classes
        frequency = self.lowest * (self.highest / self.lowest) ** place
        damping = draw.uniform(0.3, 2.0) / self.seconds
        gain, phase = draw.uniform(0.5, 1.5, self.channels), draw.uniform(0, 2 * math.pi, self.channels)
        t = np.arange(1, self.steps + 1)[:, None] / self.rate
        wave = gain * np.exp(-damping * t) * np.sin(2 * math.pi * frequency * t + phase)
        noise = (
            self.noise * math.sqrt(self.rate) * draw.standard_normal(wave.shape)
        )  # as strong in every Hz at any rate
        return (wave + noise).astype(np.float32), label


class SignalData(StepData):
    """Damped oscillations to be told apart by their frequency: generated, endless, the same everywhere.

    Args:
        classes: bands of frequencies, of equal width in octaves.
        channels: oscillations of the same frequency, each with a gain and a phase of its own.
        rate: samples a second.
        seconds: length of a signal; rate times seconds is its length in steps.
        lowest: frequency in 1/s at which the lowest band begins.
        highest: frequency in 1/s at which the highest band ends; less than half of the rate.
        noise: standard deviation of what is added to every number, over the square root of the rate: 0.1 adds 1.0 at
            100 samples a second, where the oscillations begin with about 0.7.
        held_out: how many signals validation sees; training never sees them.
        batch_size: signals in a batch of one device.
        seed: of all that is drawn.
        workers: processes that read ahead. Any number gives the same batches.

    A batch has inputs (b, t, channels) float32 and targets (b,) int64. Every error is a DataError.
    """

    def __init__(
        self,
        classes: int = 8,
        channels: int = 2,
        rate: float = 100.0,
        seconds: float = 2.0,
        lowest: float = 1.0,
        highest: float = 16.0,
        noise: float = 0.1,
        held_out: int = 1000,
        batch_size: int = 32,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        require_counts(classes=(classes, 2), channels=(channels, 1), held_out=(held_out, 1))
        require_counts(batch_size=(batch_size, 1), workers=(workers, 0))
        _check_waves(rate=rate, seconds=seconds, lowest=lowest, highest=highest, noise=noise)
        self.held_out = held_out
        waves = {"rate": rate, "seconds": seconds, "lowest": lowest, "highest": highest, "noise": noise}
        self.drawn = Oscillations(classes=classes, channels=channels, seed=seed, **waves)

    def require(self, spec: ModelSpec, path: str) -> None:
        """A classifier of whole signals with as many channels, and no fewer classes."""
        wanted = f"embed: {{type: linear, channels: {self.drawn.channels}}} and head: {{type: classify, classes: "
        wanted += f"{self.drawn.classes}, pool: mean}}"
        if spec.input.type != "linear" or spec.output.type != "classify":
            found = f"embed: {spec.input.type} and head: {spec.output.type}"
            raise DataError(f"{path} has {found}; generated signals train {wanted}; for text leave out --task signals")
        for name, ours, theirs in (
            ("channels", self.drawn.channels, spec.input.channels),
            ("classes", self.drawn.classes, spec.outputs),
        ):
            if ours != theirs:
                raise DataError(f"data.{name}: {ours}, but {path} has {name}: {theirs}; make them the same")
        if spec.output.pool == "none":
            raise DataError(f"{path} has head.pool: none, and a signal has one class; the data train {wanted}")

    def training_samples(self, start: int, rank: int, world: int) -> SampleStream:
        """Signals without end."""
        return SampleStream(partial(self.drawn.batch, TRAINING), self.batch_size, start, rank, world)

    def held_out_samples(self, shuffled: bool) -> HeldOutSamples:
        """The first `held_out` signals of a family that training never sees."""
        return HeldOutSamples(self.drawn.held_out, self.held_out, shuffled)


@torch.no_grad()
def accuracy(model: HybridLM, data: StepData) -> float:
    """The share of held-out samples whose class the model names."""
    right = total = 0
    for batch in data.predict_dataloader():
        found = model(inputs_of(batch)).logits.argmax(dim=-1)
        right, total = right + int((found == batch["targets"]).sum()), total + len(found)
    return right / total


def _check_waves(*, rate: float, seconds: float, lowest: float, highest: float, noise: float) -> None:
    numbers = {"rate": rate, "seconds": seconds, "lowest": lowest, "highest": highest, "noise": noise}
    for name, value in numbers.items():
        real = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
        if not real or value < 0 or (value == 0 and name != "noise"):
            raise DataError(
                f"data.{name}: {value!r}; a number {'of at least' if name == 'noise' else 'above'} 0 is needed"
            )
    if lowest >= highest:
        raise DataError(
            f"data.lowest: {lowest}, data.highest: {highest}; the lowest frequency must be below the highest"
        )
    if highest >= rate / 2:
        raise DataError(
            f"data.highest: {highest}; {rate:g} samples a second show frequencies below {rate / 2:g} only; raise "
            "data.rate or lower data.highest"
        )
    if not 1 <= round(rate * seconds) <= 1 << 24:
        raise DataError(
            f"data.seconds: {seconds}; at data.rate {rate:g} these are {rate * seconds:g} steps, 1 to 2^24 go"
        )
