"""`hybridlm fit | validate | test | predict`: LightningCLI with one run folder, readable errors and exit codes.

Exit codes: 0 done, 1 the run failed, 2 the command line or a config is wrong, 130 Ctrl-C (143 SIGTERM), saved.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import safetensors.torch
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from hybridlm.errors import (
    CheckpointError,
    DataError,
    PatternError,
    SpecError,
    StateError,
    UnsupportedError,
    did_you_mean,
)
from hybridlm.files import atomic_write
from hybridlm.train.callbacks import Interrupted, NonFiniteError, NonFiniteGuard, RandomState, RunCheckpoint
from hybridlm.train.checkpoint import SafeCheckpointIO, checkpoint_folder
from hybridlm.train.console import panel, quieten, results
from hybridlm.train.data import TextData
from hybridlm.train.module import LitHybridLM
from hybridlm.train.progress import LossCurve, Throughput, TrainingBar

EXPECTED = (
    PatternError,
    SpecError,
    StateError,
    DataError,
    CheckpointError,
    UnsupportedError,
    NonFiniteError,
    MisconfigurationException,
)
RUN_VARIABLE = "HYBRIDLM_RUN"  # tells the other processes of a distributed run which folder the first one chose
EXAMPLES = {
    "fit": "hybridlm fit --config configs/quickstart/stdlib.yaml --trainer.max_steps 500\n"
    "  hybridlm fit --model.spec configs/models/tiny.yaml --data.path 'texts/*.txt' --data.context 256\n"
    "  hybridlm fit --resume runs/tiny/0        goes on where a run stopped",
    "validate": "hybridlm validate --resume runs/tiny/0",
    "test": "hybridlm test --resume runs/tiny/0",
    "predict": "hybridlm predict --resume runs/tiny/0        writes every held-out token's loss to nll.safetensors",
}
USAGE = "hybridlm {} [--config FILE] [--section.key VALUE ...]\n\nexamples:\n  "
ABOUT = {
    "fit": "Train a model.",
    "validate": "Loss, perplexity and bits per byte of the held-out text.",
    "test": "As validate, under the names test_*.",
    "predict": "The loss of every held-out token.",
}


def main(argv: list[str] | None = None) -> int:
    """Run one of fit, validate, test, predict (argv[0]) and return the exit code; messages go to stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${...} under subcommands
    try:
        HybridCLI(args=_expand_resume(argv))
    except Interrupted as stop:
        panel(str(stop), "stopped", "yellow")
        return stop.exit_code
    except KeyboardInterrupt:
        panel("stopped before training began", "stopped", "yellow")
        return 130
    except EXPECTED as error:
        panel(str(error), type(error).__name__, "red")
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.environ.pop(RUN_VARIABLE, None)
    return 0


def _expand_resume(argv: list[str]) -> list[str]:
    """`--resume RUN` -> `--config RUN/config.yaml --ckpt_path RUN/checkpoints/<newest>`, ahead of the other options."""
    runs = [a.removeprefix("--resume=") for a in argv if a.startswith("--resume=")]
    runs += [after for option, after in pairwise(argv) if option == "--resume"]
    if not runs:
        return argv
    checkpoint = checkpoint_folder(runs[0])
    run = checkpoint.parents[1]
    places = [i for i, a in enumerate(argv) if a == "--resume"]
    rest = [a for i, a in enumerate(argv) if i - 1 not in places and i not in places and not a.startswith("--resume=")]
    command, options = rest[:1], rest[1:]
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run}: no config.yaml; this is not a run folder")
    here = ["--config", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", str(checkpoint)]
    here += ["--model.spec", str(run / "model.yaml")]  # wherever the run folder has moved to
    here += ["--data.tokenizer", str(run / "tokenizer.json")] if (run / "tokenizer.json").is_file() else []
    return [*command, *here, *options]


class Parser(LightningArgumentParser):
    """Says what is wrong, where, and what was probably meant, instead of screens of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one panel and exit with 2."""
        panel(self._explain(message), "command line", "red")
        raise SystemExit(2)

    def _explain(self, message: str) -> str:
        if "are required" in message and "model.spec" in message:
            return f"{message.strip()}; for example --model.spec configs/models/tiny.yaml"
        known = [option for action in self._actions for option in (*action.option_strings, action.dest)]
        words = [word.strip("\"'") for word in re.findall(r"--[\w.\-]+|[\"'][\w.\-]+[\"']", message)]
        hints = [did_you_mean(word, known) for word in words if word not in known]
        return message.strip() + next(filter(None, hints), "")


class HybridCLI(LightningCLI):
    """LitHybridLM and TextData behind one command line. A run is one folder."""

    def __init__(self, args: list[str]) -> None:
        parser = {"parser_mode": "omegaconf+", "default_env": False}
        named = {
            name: {**parser, "usage": f"{USAGE.format(name)}{EXAMPLES[name]}", "description": ABOUT[name]}
            for name in ABOUT
        }
        super().__init__(
            LitHybridLM,
            TextData,
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
        """--run, --resume (expanded before parsing, listed here for --help), --ckpt_path and --checkpoint.*."""
        parser.add_argument("--run", type=str | None, help="run folder; default runs/<name of the spec>/<next number>")
        parser.add_argument("--resume", type=str | None, help="run folder to take config and newest checkpoint from")
        parser.add_argument("--ckpt_path", type=str | None, help="checkpoint to start from; a run folder: its newest")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def _parse_ckpt_path(self) -> None:
        """Lightning would unpickle the file here, unverified, to merge its settings; ours are in config.yaml."""
        path, command = self._option("ckpt_path"), self.config.subcommand
        if path is None and command != "fit":
            raise SpecError(f"{command}: which weights? Name a run: hybridlm {command} --resume runs/NAME/0")
        self.start = {"ckpt_path": path and checkpoint_folder(path), "weights_only": True}

    def _option(self, key: str) -> Any:
        return self.config[self.config.subcommand][key]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The run folder, loggers in it, and the callbacks that every run has."""
        fitting = self.subcommand == "fit"
        trainer = self.config_init[self.subcommand]["trainer"]
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
        return super().instantiate_trainer(default_root_dir=str(run), plugins=plugins, callbacks=callbacks, **kwargs)

    def _run_folder(self) -> Path:
        """Where this run goes: as asked, or the next free number. Refuses to run over another run."""
        run = self._option("run") or os.environ.get(RUN_VARIABLE)
        if run is None:
            run = next_free(Path("runs") / Path(self._option("model")["spec"]).stem)
        elif RUN_VARIABLE not in os.environ and self._option("ckpt_path") is None and _holds_run(Path(run)):
            raise CheckpointError(
                f"{run} holds a run already; resume it with `hybridlm fit --resume {run}`, or choose another --run"
            )
        os.environ[RUN_VARIABLE] = str(run)
        self.config[self.subcommand]["run"] = str(run)
        self.config[self.subcommand]["ckpt_path"] = None  # config.yaml says how a run goes, not where it went on
        Path(run).mkdir(parents=True, exist_ok=True)
        return Path(run)

    def _keep_sources(self, run: Path) -> None:
        """Copy the spec (and tokenizer) into the run, and let its config.yaml point there: a run needs nothing else."""
        model, data = self._option("model"), self._option("data")
        copies = [(model, "spec", "model.yaml")]
        if data["tokenizer"] != "bytes":
            copies.append((data, "tokenizer", "tokenizer.json"))
        for section, key, name in copies:
            atomic_write(run / name, Path(section[key]).expanduser().read_bytes())
            section[key] = str(run / name)

    def fit(self, **arguments: Any) -> None:
        """Train, measure the last weights unless that was just done, and say what came out."""
        self.trainer.fit(**arguments, **self.start)
        trainer, checkpoint = self.trainer, _checkpoint(self.trainer)
        metrics = dict(trainer.callback_metrics)
        if trainer.enable_validation and checkpoint.validated_step < trainer.global_step:
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            metrics.update(trainer.callback_metrics)
        if trainer.is_global_zero:
            results({"steps": trainer.global_step, **metrics})
            run = Path(trainer.default_root_dir)
            best = f"best at step {checkpoint.best_step}" if checkpoint.validated_step >= 0 else "last weights"
            Console().print(f"model ({best}): {run / 'model'}\ncurve: {run / 'loss.png'}", highlight=False)

    def validate(self, **arguments: Any) -> None:
        """Measure the held-out text; a table of results."""
        self.trainer.validate(verbose=False, **arguments, **self.start)
        results(self.trainer.callback_metrics)

    def test(self, **arguments: Any) -> None:
        """As validate."""
        self.trainer.test(verbose=False, **arguments, **self.start)
        results(self.trainer.callback_metrics)

    def predict(self, **arguments: Any) -> None:
        """Write the loss of every held-out token to nll.safetensors in the run folder."""
        nll = torch.cat(self.trainer.predict(**arguments, **self.start))
        file = Path(self.trainer.default_root_dir) / "nll.safetensors"
        atomic_write(file, safetensors.torch.save({"nll": nll.contiguous()}))
        Console().print(f"nats of {nll.shape[0]} windows of {nll.shape[1]} held-out tokens: {file}", highlight=False)


def _checkpoint(trainer: pl.Trainer) -> RunCheckpoint:
    return next(callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint))


def _holds_run(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*"))


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
