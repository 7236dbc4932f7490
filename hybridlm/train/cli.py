"""`hybridlm fit | validate | test | predict`: LightningCLI with one run folder, readable errors and exit codes.

Exit codes: 0 done; 1 the run failed (a loss that is no number, a checkpoint that could not be saved); 2 a mistake of
the user's, told before anything was trained; 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hybridlm.errors import (
    CheckpointError,
    DataError,
    PatternError,
    SpecError,
    StateError,
    UnsupportedError,
)
from hybridlm.files import atomic_write
from hybridlm.registry import data_of, tasks
from hybridlm.train.arguments import Parser, expand, known_tasks, task_of
from hybridlm.train.callbacks import (
    Interrupted,
    NonFiniteError,
    NonFiniteGuard,
    RandomState,
    RunCheckpoint,
    UnsavedError,
)
from hybridlm.train.checkpoint import SafeCheckpointIO, saved_spec, whole_checkpoint
from hybridlm.train.console import Terminal, panel, quieten, results
from hybridlm.train.module import LitHybridLM, require_same_spec
from hybridlm.train.progress import LossCurve, Throughput, TrainingBar

MISTAKES = (
    PatternError,
    SpecError,
    StateError,
    DataError,
    CheckpointError,
    UnsupportedError,
    MisconfigurationException,
)
FAILURES = (NonFiniteError, UnsavedError)
RUN_VARIABLE = "HYBRIDLM_RUN"  # tells the other processes of a distributed run which folder the first one chose
EXAMPLES = {
    "fit": "hybridlm fit --config quickstart/stdlib --trainer.max_steps 500        a shipped config, from anywhere\n"
    "  hybridlm fit --task mqar --data.params.pairs 8 --model.spec configs/models/tiny.yaml        known answers\n"
    "  hybridlm fit --model.spec configs/models/tiny.yaml --data.path 'texts/*.txt' --data.context 256\n"
    "  hybridlm fit --config train/signals        classes of generated signals; --task signals says so\n"
    "  hybridlm fit --resume runs/tiny/0        goes on where a run stopped",
    "validate": "hybridlm validate --resume runs/tiny/0",
    "test": "hybridlm test --resume runs/tiny/0",
    "predict": "hybridlm predict --resume runs/tiny/0        writes every held-out token's loss to nll.safetensors,\n"
    "  or every held-out signal's answer to logits.safetensors",
}
USAGE = "hybridlm {} [--config FILE] [--section.key VALUE ...]\n\nexamples:\n  "
ABOUT = {
    "fit": "Train a model.",
    "validate": "Loss, perplexity and bits per byte of the held-out text; accuracy on held-out signals.",
    "test": "As validate, under the names test_*.",
    "predict": "The loss of every held-out token; the answer to every held-out signal.",
}


def main(argv: list[str] | None = None) -> int:
    """Run one of fit, validate, test, predict (argv[0]) and return the exit code; messages go to stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${...} under subcommands
    try:
        with _told_to_stop(), ExitStack() as held:
            HybridCLI(expand(argv), held)
    except Interrupted as stop:
        panel(str(stop), "stopped", "yellow")
        return stop.exit_code
    except (*MISTAKES, *FAILURES) as error:
        panel(str(error), type(error).__name__)
        return 1 if isinstance(error, FAILURES) else 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.environ.pop(RUN_VARIABLE, None)
    return 0


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Ctrl-C and SIGTERM are Interrupted, wherever they arrive; Lightning would end the process without a word."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, Path(os.environ.get(RUN_VARIABLE, os.devnull)))

    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class HybridCLI(LightningCLI):
    """LitHybridLM and the data of a task behind one command line. A run is one folder."""

    def __init__(self, args: list[str], held: ExitStack) -> None:
        self._held = held  # what is given back when the command ends
        task = task_of(args)
        self.known = task in tasks  # one with known answers, which TaskData is told
        parser = {"parser_mode": "omegaconf+", "default_env": False, "allow_abbrev": False}
        named = {
            name: {**parser, "usage": f"{USAGE.format(name)}{EXAMPLES[name]}", "description": ABOUT[name]}
            for name in ABOUT
        }
        super().__init__(
            LitHybridLM,
            data_of(task),
            args=args,
            parser_class=Parser,
            parser_kwargs={**parser, "prog": "hybridlm", "description": "Train and measure hybrid models.", **named},
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
                "devices": 1,
                "max_steps": 2000,
                "val_check_interval": 250,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What each command does not offer: the objects, and choices that are not the user's here."""
        ours = {"ckpt_path", "verbose", "weights_only", "return_predictions"}
        return {name: skipped | ours for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """--task, --run, --resume (expanded before parsing, listed here for --help), --ckpt_path, --checkpoint.*."""
        told = {"type": Literal[known_tasks()], "default": "text", "help": "what to train on; --data.* follows it"}
        parser.add_argument("--task", **told)
        if self.known:
            parser.link_arguments("task", "data.task")
        parser.add_argument("--run", type=str | None, help="run folder; default runs/<name of the spec>/<next number>")
        parser.add_argument("--resume", type=str | None, help="run folder to take config and newest checkpoint from")
        parser.add_argument("--ckpt_path", type=str | None, help="checkpoint to start from; a run folder: its newest")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def _parse_ckpt_path(self) -> None:
        """Lightning would unpickle the file here, unverified, to merge its settings; ours are in config.yaml."""
        path, command = self._option("ckpt_path"), self.config.subcommand
        if path is None and command != "fit":
            raise SpecError(f"{command}: which weights? Name a run: hybridlm {command} --resume runs/NAME/0")
        self.start = {"ckpt_path": path and whole_checkpoint(path), "weights_only": True}

    def _option(self, key: str) -> Any:
        return self.config[self.config.subcommand][key]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The run folder, loggers in it, and the callbacks that every run has."""
        fitting = self.subcommand == "fit"
        trainer = self.config_init[self.subcommand]["trainer"]
        _check_length(trainer)
        if checkpoint := self.start["ckpt_path"]:  # before a file of the run is touched
            require_same_spec(saved_spec(checkpoint), self.model)
        callbacks = [*(trainer["callbacks"] or [])]
        if trainer["enable_progress_bar"] is not False:
            callbacks.append(TrainingBar())
        if fitting:
            run = self._run_folder()
            self._keep_sources(run)
            callbacks += [Throughput(), LossCurve(), RandomState(), NonFiniteGuard()]
        else:
            run = Path(self._option("run") or ".")
            self.save_config_callback = None
        if trainer["logger"] in (None, True):
            kwargs["logger"] = _loggers(run) if fitting else False
        plugins = [*(trainer["plugins"] or []), SafeCheckpointIO()]
        with _lightning_tells():
            return super().instantiate_trainer(
                default_root_dir=str(run), plugins=plugins, callbacks=callbacks, **kwargs
            )

    def _set_seed(self) -> None:
        with _lightning_tells():
            super()._set_seed()

    def _run_folder(self) -> Path:
        """Where this run goes: as asked, or the next free number. Refuses to run over another run."""
        first = RUN_VARIABLE not in os.environ
        run = self._option("run") or os.environ.get(RUN_VARIABLE)
        if run is None:
            run = next_free(Path("runs") / Path(self.model.spec_path).stem)
        elif first and self._option("ckpt_path") is None and _holds_run(Path(run)):
            raise CheckpointError(
                f"{run} holds a run already; resume it with `hybridlm fit --resume {run}`, or choose another --run"
            )
        if Path(run).exists() and not Path(run).is_dir():
            raise CheckpointError(f"{run}: a file; a run is a folder: choose another --run")
        os.environ[RUN_VARIABLE] = str(run)
        self.config[self.subcommand]["run"] = str(run)
        self.config[self.subcommand]["ckpt_path"] = None  # config.yaml says how a run goes, not where it went on
        Path(run).mkdir(parents=True, exist_ok=True)
        if first:
            self._held.enter_context(_alone_in(Path(run)))
        return Path(run)

    def _keep_sources(self, run: Path) -> None:
        """Copy the spec (and tokenizer) into the run, and let its config.yaml point there: a run needs nothing else."""
        copies = [("model", "spec", self.model.spec_path, "model.yaml")]
        if self.datamodule.tokenizer_path is not None:
            copies.append(("data", "tokenizer", self.datamodule.tokenizer_path, "tokenizer.json"))
        for section, key, source, name in copies:
            atomic_write(run / name, Path(source).read_bytes())
            self._option(section)[key] = str(run / name)

    def fit(self, **arguments: Any) -> None:
        """Train, measure the last weights unless that was just done, and say what came out."""
        self.trainer.fit(**arguments, **self.start)
        trainer, checkpoint = self.trainer, _checkpoint(self.trainer)
        if not checkpoint.trained:
            panel(f"nothing to train: the run stands at step {trainer.global_step} already; raise --trainer.max_steps")
            raise SystemExit(2)
        metrics = dict(trainer.callback_metrics)
        if trainer.enable_validation and checkpoint.validated_step < trainer.global_step:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            metrics.update(trainer.callback_metrics)
        if trainer.is_global_zero:
            results({"steps": trainer.global_step, **metrics})
            run = Path(trainer.default_root_dir)
            best = f"best at step {checkpoint.best_step}" if checkpoint.best_step >= 0 else "last weights"
            Terminal().print(f"model ({best}): {run / 'model'}\ncurve: {run / 'loss.png'}", highlight=False)

    def validate(self, **arguments: Any) -> None:
        """Measure what was held out; a table of results."""
        self.trainer.validate(verbose=False, **arguments, **self.start)
        results(self.trainer.callback_metrics)

    def test(self, **arguments: Any) -> None:
        """As validate."""
        self.trainer.test(verbose=False, **arguments, **self.start)
        results(self.trainer.callback_metrics)

    def predict(self, **arguments: Any) -> None:
        """Write the loss of every held-out token, or the answer to every held-out sample, into the run folder."""
        answers, name = torch.cat(self.trainer.predict(**arguments, **self.start)), self.model.score.answer
        file = Path(self.trainer.default_root_dir) / f"{name}.safetensors"
        atomic_write(file, safetensors.torch.save({name: answers.contiguous()}))
        shape = " x ".join(map(str, answers.shape))
        what = f"nats of {answers.shape[0]} windows of {answers.shape[1]} held-out tokens"
        said = what if name == "nll" else f"{name} of held-out samples, {shape}"
        Terminal().print(f"{said}: {file}", highlight=False)


@contextmanager
def _lightning_tells() -> Iterator[None]:
    """What Lightning refuses of the user's settings, as a mistake."""
    try:
        yield
    except MISTAKES:
        raise
    except ValueError as error:
        raise SpecError(f"Lightning: {error}") from error


def _check_length(trainer: Mapping[str, Any]) -> None:
    """SpecError for settings that mean something only where the text comes in epochs, or nothing at all."""
    meant = {"max_epochs": -1, "min_epochs": -1, "limit_train_batches": 1.0}
    for name, whole in meant.items():
        if repr(trainer[name]) not in ("None", repr(whole)):  # 1 batch is not 1.0, all of them
            raise SpecError(
                f"trainer.{name}: {trainer[name]}; training counts steps, and its text is a stream without epochs. "
                "Leave it out and set trainer.max_steps"
            )
    for name in ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        if isinstance(trainer[name], int | float) and trainer[name] <= 0:
            raise SpecError(f"trainer.{name}: {trainer[name]}; it must be above 0")
    if trainer["default_root_dir"] is not None:
        raise SpecError(f"trainer.default_root_dir: {trainer['default_root_dir']}; --run names the folder of a run")


def _checkpoint(trainer: pl.Trainer) -> RunCheckpoint:
    return next(callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint))


def _holds_run(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*"))


@contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Hold a run folder. CheckpointError: another process, one that has saved nothing yet perhaps, trains there."""
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CheckpointError(f"{run}: another process trains there now; choose another --run") from None
    with lock:
        lock.release()  # of the two holds, the one that `with` took stays
        yield


def next_free(folder: Path) -> Path:
    """folder/0, folder/1, ...: the first that could be made here and now, so that two runs never share one."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(place.name) for place in folder.iterdir() if place.name.isdecimal()]
    number = max(taken, default=-1) + 1
    while True:
        try:
            (folder / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder / str(number)


def _loggers(run: Path) -> list[Logger]:
    """metrics.csv and TensorBoard events. The CSV logger deletes an older metrics.csv, so that one is moved aside."""
    old = run / "metrics.csv"
    if old.exists():
        old.rename(run / f"metrics.{len(list(run.glob('metrics.*.csv')))}.csv")
    csv = CSVLogger(run, name="", version="", flush_logs_every_n_steps=10)
    return [csv, TensorBoardLogger(run, name="", version="", sub_dir="tensorboard")]
