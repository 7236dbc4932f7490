"""Callbacks that never lose a run: checkpoints, Ctrl-C, random state, and a stop before a non-finite step.

All of them work in the trainer's `default_root_dir`, the run folder: checkpoints/step-* to resume from, model/ to use.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn

from hybridlm.compose.build import save
from hybridlm.errors import CheckpointError
from hybridlm.train.checkpoint import put_aside_later
from hybridlm.train.graphs import NonFiniteError


class Interrupted(Exception):  # noqa: N818 (a request, not a fault)
    """The user (Ctrl-C) or the system (SIGTERM) asked for an end.

    run: the run folder. step: the last one taken, if it is known; the message says whether it is saved.
    """

    def __init__(self, number: int, run: Path, step: int | None = None) -> None:
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
        kept = sorted((run / "checkpoints").glob("step-*"))
        if not kept:
            what = "; nothing was saved, and nothing is lost but this run's first steps" if step else ""
        else:
            whole = step is not None and kept[-1].name == step_name(step)
            what = "; everything is saved" if whole else f"; saved up to {kept[-1].name}"
            what += f". Resume with\n  hybridlm fit --resume {run}"
        super().__init__(f"stopped by {name}{what}")
        self.exit_code = 128 + number


class UnsavedError(CheckpointError):
    """A checkpoint or a model that could not be written; what was there before is intact."""


class RunCheckpoint(Checkpoint):
    """Saves checkpoints to resume from, and the best weights to use.

    Args:
        every: steps between checkpoints. One is also saved at the end, and on Ctrl-C or SIGTERM.
        keep: how many of the newest stay.

    `model/` in the run folder is what `hl.load` reads: the weights of the lowest validation loss, or the last ones
    while nothing has been validated.
    """

    def __init__(self, every: int = 500, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise CheckpointError(f"checkpoint.every: {every}, checkpoint.keep: {keep}; both must be 1 or more")
        self.every, self.keep = every, keep
        self.best, self.best_step = math.inf, -1
        self.validated_step = -1
        self.trained = False  # whether there was a step to take
        self._step = 0
        self._signals = _Signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on Ctrl-C ends the run after the step under way."""
        self._step, self.trained = trainer.global_step, True
        self._signals.listen(trainer)
        if trainer.is_global_zero:
            put_aside_later(Path(trainer.default_root_dir) / "checkpoints", trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; only where an optimiser step has just been taken, so that no gradient is pending."""
        step, self._step = self._step, trainer.global_step
        if step == self._step:
            return
        last = self._step == trainer.max_steps or trainer.should_stop
        received = self._signals.received
        if received or last or self._step % self.every == 0:
            self._save(trainer, pl_module)
        if received:
            raise Interrupted(received, Path(trainer.default_root_dir), self._step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the model if it is the best so far of a run that this callback has seen training."""
        loss = trainer.callback_metrics.get("val_loss")
        if not self.trained or trainer.sanity_checking or loss is None:
            return
        self.validated_step = trainer.global_step
        if loss < self.best:
            self.best, self.best_step = float(loss), trainer.global_step
            self._export(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ctrl-C means again what it meant before."""
        self._signals.release()

    def state_dict(self) -> dict[str, Any]:
        """The best validation loss and its step."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Only a better model replaces the exported one after a resume."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.best == math.inf:
            self._export(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / step_name(trainer.global_step)
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            raise _unsaved(error, path) from error
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*"))[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        try:
            save(pl_module.model, run / "model")
        except OSError as error:
            raise _unsaved(error, run / "model") from error


def step_name(step: int) -> str:
    """The name of a checkpoint's folder; in the order of the names they are in the order of the steps."""
    return f"step-{step:08d}"


def _unsaved(error: OSError, path: Path) -> UnsavedError:
    run = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    kept = sorted((run / "checkpoints").glob("step-*"))
    why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
    if not kept:
        return UnsavedError(f"could not save {path}: {why}; there is no earlier checkpoint. Make room, then start anew")
    return UnsavedError(
        f"could not save {path}: {why}; the previous checkpoint is intact: {kept[-1]}. "
        f"Make room, then hybridlm fit --resume {run}"
    )


class _Signals:
    """Remembers SIGINT and SIGTERM instead of dying of them. A second one stops at once."""

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, Any] = {}

    def listen(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread() or self._former:
            return  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._receive)

    def release(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise Interrupted(number, Path(self._trainer.default_root_dir), self._trainer.global_step)
        self.received = number
        what = "validation, one more step" if self._trainer.validating else "this step"
        said = f"\nfinishing {what} and saving; once more stops at once, without saving\n"
        os.write(2, said.encode())  # to stderr; print, if it was at work, cannot be called from a handler


class RandomState(Callback):
    """Random generators of torch and CUDA in every checkpoint, so that dropout too resumes exactly (one process)."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors only: a checkpoint is read with weights_only."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts, since setting up draws numbers too."""
        self._state = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the streams of a resumed run."""
        if self._state is None:
            return
        torch.set_rng_state(self._state["cpu"])
        if len(self._state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._state["cuda"])
        self._state = None


class NonFiniteGuard(Callback):
    """Stops before an optimiser step on a loss or gradient that is no number, and names where it began."""

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch: the culprit is found by running it again."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """NonFiniteError if the loss is not finite. A captured step looks itself, and waits for nothing."""
        if not pl_module.cuda_graph and not torch.isfinite(loss):
            where = first_nonfinite(trainer, pl_module, self._batch)
            raise nonfinite(trainer, f"the loss is {loss.item()}. {where}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """NonFiniteError if a gradient is not finite. (float16 has a scaler that skips such steps.)"""
        if trainer.precision == "16-mixed":
            return
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients.values())):
            bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            raise nonfinite(trainer, f"the loss is finite, its gradient is not: {', '.join(bad[-3:]) or 'its norm'}.")


def nonfinite(trainer: pl.Trainer, what: str, ago: int = 0) -> NonFiniteError:
    """The error to raise: the step, what went wrong, and what may help. ago: steps counted since."""
    kept = sorted((Path(trainer.default_root_dir) / "checkpoints").glob("step-*"))
    good = f"The last good checkpoint is {kept[-1]}" if kept else "No checkpoint had been saved yet"
    return NonFiniteError(
        f"step {trainer.global_step + 1 - ago}: {what}\nThe optimiser step was not taken. {good}; "
        "a lower model.lr, longer model.warmup or trainer.precision 32-true may help."
    )


def first_nonfinite(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> str:
    """Run a batch again with a hook on every layer; a sentence that names the first non-finite activation."""
    model = pl_module.model
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    found: list[str] = []

    def watch(name: str, layer: nn.Module):
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not all(tensor.isfinite().all() for tensor in _floats(output)):
                found.append(f"{name} ({type(layer).__name__})")

        return layer.register_forward_hook(hook)

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if name:
                hooks.callback(watch(name, layer).remove)
        hooks.enter_context(trainer.precision_plugin.forward_context())
        if pl_module.compiled:
            hooks.enter_context(torch.compiler.set_stance("force_eager"))  # which a hook that looks at numbers needs
        with torch.no_grad():
            pl_module.loss(batch)
    where = (
        f"First layer with a non-finite activation: {found[0]}." if found else "Every layer's activations are finite."
    )
    return where + (f" Non-finite parameters: {', '.join(broken[:5])}." if broken else "")


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _floats(entry)
