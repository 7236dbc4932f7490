"""Training a pack under Lightning: steps, evaluations, early stops, checkpoints, and then what its trials found."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from hybridlm.ablate.captured import Captured
from hybridlm.ablate.job import CHECKPOINTS, PROGRESS, Pack, Settings
from hybridlm.ablate.knockout import knockouts
from hybridlm.ablate.measure import HeldOut, better, measure
from hybridlm.ablate.pack import Members, RowAdamW, Way, apart, best_way, stacked
from hybridlm.ablate.results import Metrics, Result
from hybridlm.ablate.samples import PackStream, held_out_of
from hybridlm.ablate.subject import length_of
from hybridlm.errors import CheckpointError
from hybridlm.train.callbacks import step_name
from hybridlm.train.checkpoint import SafeCheckpointIO
from hybridlm.train.console import quieten
from hybridlm.train.optim import schedule_factor
from hybridlm.train.samples import Batch, mix

if TYPE_CHECKING:
    from hybridlm.ablate.study import Study, Trial

WAYS = {  # to the gradients of a pack
    "apart": lambda members, train: apart(members, train.precision),
    "stacked": lambda members, train: stacked(members, train.precision),
    "captured": lambda members, train: Captured(members, train.precision, train.steps),
}
WSD_DECAY = 0.2  # share of a run in which the schedule wsd falls
SHOWN_EVERY = 1.0  # seconds between two notes of where a pack stands


# ------------------------------------------------------------------------------------------------------------- modules
class LitPack(pl.LightningModule):
    """A pack as a LightningModule. Its one parameter is the matrix of its members' weights; it optimises by hand.

    active:   (m,) bool, members that are trained still. diverged: (m,) int64, the step at which a member's loss or
    gradient was no number, or -1. curves, solved_at: of each member, as Result has them.
    """

    def __init__(self, study: Study, trials: Sequence[Trial], device: torch.device, way: Way | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.study, self.trials, self.train_settings = study, list(trials), study.train
        self.trained_on = device  # the members stay there when Lightning, at its end, moves this module to the CPU
        seeds = [trial.seed for trial in trials]
        self.members = Members(trials[0].arm.spec, seeds, study.train.weight_decay, device)
        self.weights = self.members.weights
        flops = trials[0].arm.cost.flops_train * length_of(study.data) * study.train.batch_size
        self.dropout = trials[0].arm.spec.dropout > 0
        self.way: Way = way or best_way(self.members, flops, self.dropout)
        self.gradients = WAYS[self.way](self.members, study.train)
        self.active = torch.ones(len(seeds), dtype=torch.bool, device=device)
        self.diverged = torch.full((len(seeds),), -1, dtype=torch.int64, device=device)
        self.curves: list[list[tuple[int, Metrics]]] = [[] for _ in seeds]
        self.solved_at: list[int | None] = [None] * len(seeds)
        self.running = [True] * len(seeds)  # active, as of the last evaluation, on the host
        self.ended_at = [study.train.steps] * len(seeds)

    @cached_property
    def held_out(self) -> dict[int, HeldOut]:
        """Of each seed: what its members are tested on."""
        seeds = dict.fromkeys(trial.seed for trial in self.trials)
        return {seed: held_out_of(self.study.data, seed, self.trained_on) for seed in seeds}

    def configure_optimizers(self) -> RowAdamW:
        """AdamW with a learning rate a member."""
        lr = torch.tensor([trial.lr for trial in self.trials], device=self.weights.device)
        return RowAdamW(self.members, lr, clip=self.train_settings.clip)

    def training_step(self, batches: dict[int, Batch], batch_idx: int) -> None:
        """One step of every member that is trained still."""
        step = self.trainer.global_step
        if self.dropout:  # its masks are a function of the step, so that nothing of it need be kept
            torch.manual_seed(mix(self.trials[0].seed, step) & (2**63 - 1))
        optimizer = self.optimizers(use_pl_optimizer=True)
        self.find_gradients([batches[trial.seed] for trial in self.trials])
        bad = optimizer.step(factor=self.factor(step), active=self.active)
        lost = bad & self.active
        self.diverged = torch.where(lost, step + 1, self.diverged)
        self.active = self.active & ~lost

    def find_gradients(self, batches: Sequence[Batch]) -> None:
        """The gradients of a step. What torch.func has no rule or no memory for, or what cannot be captured, goes
        member by member, and says so."""
        self.members.gradient.zero_()
        try:
            self.gradients(batches, self.running)
            return
        except RuntimeError as error:
            if self.way == "apart":
                raise
            print(f"members go one by one, as they cannot be {self.way}: {error}", file=sys.stderr)
        self.way, self.gradients = "apart", apart(self.members, self.train_settings.precision)
        self.members.gradient.zero_()
        self.gradients(batches, self.running)

    def factor(self, step: int) -> float:
        """What multiplies the peak learning rates at a step, from 0: the schedule that `hybridlm fit` has."""
        train = self.train_settings
        shape = {"schedule": train.schedule, "warmup": train.warmup, "decay": WSD_DECAY, "final": train.final_lr}
        return schedule_factor(step, total=train.steps, **shape)

    def evaluate(self, step: int) -> None:
        """A point of each running member's curve; whoever has solved it, or lost its numbers, is frozen."""
        stop, active, diverged = self.train_settings.stop_at, self.active.tolist(), self.diverged.tolist()
        for k, trial in enumerate(self.trials):
            if not self.running[k]:
                continue
            found = measure(self.members.models[k], self.held_out[trial.seed])
            self.curves[k].append((step, found))
            if diverged[k] >= 0:
                self.ended_at[k] = diverged[k]
            elif stop is not None and better(stop.metric, found.get(stop.metric, math.nan), stop.value):
                self.solved_at[k], self.ended_at[k], active[k] = step, step, False
        self.running = active
        self.active = torch.tensor(active, device=self.active.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Everything besides weights and moments, as plain values: a checkpoint is read with weights_only."""
        names = ("curves", "solved_at", "running", "ended_at")
        checkpoint["pack"] = json.dumps({name: _plain(getattr(self, name)) for name in names})
        checkpoint["keys"] = [trial.key for trial in self.trials]
        checkpoint["masks"] = {"active": self.active, "diverged": self.diverged}
        checkpoint["buffers"] = self.members.buffers()
        checkpoint["spec"] = self.trials[0].arm.spec.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where it stood."""
        said = json.loads(checkpoint["pack"])
        self.curves = [[(step, _numbers(found)) for step, found in curve] for curve in said["curves"]]
        self.solved_at, self.running, self.ended_at = said["solved_at"], said["running"], said["ended_at"]
        device = self.weights.device
        self.active, self.diverged = (checkpoint["masks"][name].to(device) for name in ("active", "diverged"))
        self.members.set_buffers(checkpoint["buffers"])


def _plain(value: Any) -> Any:
    """NaN as null."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(found: dict[str, float | None]) -> Metrics:
    return {name: math.nan if value is None else value for name, value in found.items()}


class Keeper(Callback):
    """After each step: evaluations when they are due, a checkpoint every so many seconds, and a note of progress."""

    def __init__(self, training: Training) -> None:
        self.training, self.saved, self.shown, self.stopped = training, time.monotonic(), -math.inf, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitPack, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The end of a step."""
        step, train = trainer.global_step, pl_module.train_settings
        if step % train.eval_every == 0 or step == train.steps:
            pl_module.evaluate(step)
        over = step == train.steps or not any(pl_module.running)
        self.stopped = not over and self.training.stop()
        if over or self.stopped or time.monotonic() - self.saved >= self.training.settings.save_every:
            self.training.save(trainer)
            self.saved = time.monotonic()
        if over or time.monotonic() - self.shown >= SHOWN_EVERY:
            self.training.show(step)
            self.shown = time.monotonic()
        trainer.should_stop = over or self.stopped

    def state_dict(self) -> dict[str, float]:
        """What is kept with a checkpoint: the time that the work has taken."""
        return {"seconds": self.training.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The time that it had taken."""
        self.training.before = state_dict["seconds"]


# ------------------------------------------------------------------------------------------------------------ training
class Training:
    """The training of a pack in its folder, resumed from its checkpoint if there is one."""

    def __init__(
        self, pack: Pack, left: Sequence[Trial], place: Path, settings: Settings, stop: Callable[[], bool]
    ) -> None:
        self.pack, self.place, self.settings, self.stop = pack, place, settings, stop
        self.trials, self.study, self.wanted = list(left), left[0].study, {trial.key for trial in left}
        self.device = torch.device(settings.device)
        self.checkpoint: Path | None = None
        self.started, self.before, self.first = time.monotonic(), 0.0, 0

    @property
    def seconds(self) -> float:
        """Of work on the pack, that of processes before this one too."""
        return self.before + time.monotonic() - self.started

    def resume(self) -> list[str]:
        """Find the checkpoint to go on from. Returns what is damaged or of other trials, and is done anew."""
        folder = self.place / CHECKPOINTS
        for stale in folder.glob(".*"):  # of a saving that was cut off
            shutil.rmtree(stale, ignore_errors=True)
        saved = sorted(folder.glob("step-*"))
        if not saved:
            return []
        try:
            keys = SafeCheckpointIO().load_checkpoint(saved[-1])["keys"]
        except (CheckpointError, KeyError) as error:
            shutil.rmtree(folder)
            return [f"{saved[-1]}: the pack must run anew: {error}"]
        known = {trial.key: trial for trial in self.pack.trials}
        if not self.wanted <= set(keys) <= set(known):
            shutil.rmtree(folder)
            return [f"{saved[-1]}: it is of other trials than those to run; they run anew"]
        self.trials, self.checkpoint = [known[key] for key in keys], saved[-1]
        return []

    def run(self, found: Callable[[Result], None]) -> bool:
        """Train to the end, then measure trial by trial; `found` takes each result that is wanted, as it is there.

        False: it was told to stop before it had all of them, and can go on from its checkpoint.
        """
        quieten()
        with _threads(self.settings.threads):
            module = LitPack(self.study, self.trials, self.device, self.settings.way)
            keeper = Keeper(self)
            trainer = self._trainer(keeper)
            self._fit(trainer, module)
            return not keeper.stopped and self._measure(module, found)

    def _fit(self, trainer: pl.Trainer, module: LitPack) -> None:
        at = int(self.checkpoint.name.removeprefix("step-")) if self.checkpoint else 0
        self.first = at
        stream = PackStream(self.study, [trial.seed for trial in self.trials], at)
        loader = DataLoader(stream, batch_size=None, num_workers=self.pack.workers)
        trainer.fit(module, loader, ckpt_path=self.checkpoint, weights_only=True)

    def _trainer(self, keeper: Keeper) -> pl.Trainer:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        return pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            max_steps=self.study.train.steps,
            callbacks=[keeper],
            plugins=[SafeCheckpointIO()],
            default_root_dir=str(self.place),
            num_sanity_val_steps=0,
            limit_val_batches=0,
            **quiet,
        )

    def save(self, trainer: pl.Trainer) -> None:
        """Keep where it stands, and then only that."""
        folder = self.place / CHECKPOINTS
        path = folder / step_name(trainer.global_step)
        trainer.save_checkpoint(path)
        for old in folder.glob("step-*"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)

    def show(self, step: int) -> None:
        """Note where the pack stands. Not flushed to the disk: nothing depends on it."""
        said = {"step": step, "steps": self.study.train.steps, "members": len(self.trials), "when": time.time()}
        said |= {"first": self.first, "seconds": time.monotonic() - self.started, "pid": os.getpid()}
        temporary = self.place / f".{PROGRESS}"
        temporary.write_text(json.dumps(said))
        temporary.replace(self.place / PROGRESS)

    def _measure(self, module: LitPack, found: Callable[[Result], None]) -> bool:
        """What every trial found, with its further evaluations and knock-outs. False: told to stop before the end."""
        share = self.seconds / len(self.trials)
        pairs = [(data, seed) for data in self.study.eval for seed in module.held_out]
        tests = {(data.name, seed): held_out_of(data, seed, self.device) for data, seed in pairs}
        left = [k for k, trial in enumerate(self.trials) if trial.key in self.wanted]
        for k in left:
            found(self._result(module, k, tests, share))
            if k != left[-1] and self.stop():
                return False
        return True

    def _result(self, module: LitPack, k: int, tests: dict[tuple[str, int], HeldOut], share: float) -> Result:
        """What a trial found; share: seconds of the training that were its own."""
        began, trial, model = time.monotonic(), self.trials[k], module.members.models[k]
        diverged = int(module.diverged[k])
        evals = {data.name: measure(model, tests[data.name, trial.seed]) for data in self.study.eval}
        knocked_out = knockouts(model, module.held_out[trial.seed])
        return Result(
            key=trial.key,
            seed=trial.seed,
            lr=trial.lr,
            steps=module.ended_at[k],
            seconds=share + time.monotonic() - began,
            device=_device_name(self.device),
            final=module.curves[k][-1][1],
            evals=evals,
            curve=module.curves[k],
            solved_at=module.solved_at[k],
            diverged_at=diverged if diverged >= 0 else None,
            knockouts=knocked_out,
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
