"""What a run shows of itself: a progress bar, its rate, and a picture of its loss."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hybridlm.compose.cost import model_cost
from hybridlm.files import atomic_write
from hybridlm.train.console import Terminal, digits
from hybridlm.train.metrics import Rate
from hybridlm.train.samples import inputs_of

_SHOWN = {"train_loss": "loss", "train_bpb": "bits/byte", "tokens_per_second": "tok/s", "mfu": "MFU"}


class Throughput(Callback):
    """Logs tokens_per_second and, on a chip whose peak is known, mfu: model FLOPs over the chip's peak.

    The FLOPs are those of our own cost model, which counts scans and FFTs too.
    """

    def __init__(self) -> None:
        self._rate = Rate()
        self._flops: dict[int, float] = {}
        self._peak: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look up the chip."""
        dtype = torch.bfloat16 if "16" in str(trainer.precision) else torch.float32
        self._peak = get_available_flops(pl_module.device, dtype) if pl_module.device.type == "cuda" else None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clock runs."""
        self._rate.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate of the last steps."""
        tokens = inputs_of(batch).shape[:2].numel()
        rate = self._rate.step(tokens) * trainer.world_size
        pl_module.log("tokens_per_second", rate, prog_bar=True)
        if self._peak:
            flops = self._flops_per_token(pl_module, inputs_of(batch).shape[1])
            pl_module.log("mfu", rate * flops / (self._peak * trainer.world_size), prog_bar=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training."""
        self._rate.pause()

    def _flops_per_token(self, pl_module: pl.LightningModule, context: int) -> float:
        if context not in self._flops:
            self._flops[context] = model_cost(pl_module.model.spec).training(context).total
        return self._flops[context]


class TrainingBar(ProgressBar):
    """step/max_steps, loss, bits per byte, tokens/s, time left. Plain lines where the output is no terminal.

    Args:
        every: steps between lines where no bar can be drawn.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        self.every = every
        self._console = Terminal()
        self._enabled = True
        self._bar: Progress | None = None
        self._printed = -1

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._console.print(*args, highlight=False, **kwargs)

    def _start(self, label: str, total: float, done: int = 0) -> None:
        if not self._enabled or not self._console.is_terminal:
            return
        self._stop()
        columns = [
            TextColumn(label),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
        ]
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, expand=True, transient=True)
        self._bar.add_task(label, total=total if math.isfinite(total) else None, completed=done, shown="")
        self._bar.start()

    def _advance(self, done: int, shown: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, shown=shown)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _numbers(self, trainer: pl.Trainer) -> str:
        metrics = {_SHOWN[k]: float(v) for k, v in trainer.progress_bar_metrics.items() if k in _SHOWN}
        return "  ".join(f"{name} {digits(value)}" for name, value in metrics.items())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the step the run stands at."""
        self._start("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step on, or one line."""
        step = trainer.global_step
        self._advance(step, self._numbers(trainer))
        if self._bar is None and step != self._printed and step % self.every == 0 and step > 0:
            self._printed = step
            self.print(f"step {step}/{trainer.max_steps}  {self._numbers(trainer)}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A bar of its own."""
        self._start("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any, **names: Any) -> None:
        """One batch on."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line that stays; then the training bar again."""
        self._stop()
        if trainer.state.fn != "fit":
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        numbers = "  ".join(f"{name} {digits(value)}" for name, value in metrics.items())
        self.print(f"step {trainer.global_step}/{trainer.max_steps}  {numbers}")
        self._start("training", trainer.max_steps, trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The terminal is left as it was, also after an error."""
        self._stop()


class LossCurve(Callback):
    """Draws loss.png in the run folder at every validation and at the end. Its points are part of a checkpoint."""

    def __init__(self) -> None:
        self._train: list[tuple[int, float]] = []
        self._val: list[tuple[int, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A point each time that metrics are logged."""
        step = trainer.global_step
        new = not self._train or self._train[-1][0] < step
        if new and (step % trainer.log_every_n_steps == 0 or step == 1):
            self._train.append((step, float(outputs[pl_module.model.readout.measure])))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A point of the other curve, and a new picture."""
        if not trainer.sanity_checking and "val_loss" in trainer.callback_metrics:
            self._val.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))
            self._draw(trainer, pl_module.score.unit)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The whole run."""
        self._draw(trainer, pl_module.score.unit)

    def state_dict(self) -> dict[str, Any]:
        """Both curves."""
        return {"train": list(self._train), "val": list(self._val)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on drawing."""
        self._train = [tuple(point) for point in state_dict["train"]]
        self._val = [tuple(point) for point in state_dict["val"]]

    def _draw(self, trainer: pl.Trainer, unit: str) -> None:
        if trainer.is_global_zero and (self._train or self._val):
            run = Path(trainer.default_root_dir)
            run.mkdir(parents=True, exist_ok=True)
            atomic_write(run / "loss.png", loss_png(self._train, self._val, unit))


def loss_png(train: list[tuple[int, float]], val: list[tuple[int, float]], unit: str = "nats per token") -> bytes:
    """A picture of (step, loss) points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for points, label, style in ((train, "training", {"alpha": 0.6}), (val, "held out", {"marker": "o"})):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="optimiser steps", ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
