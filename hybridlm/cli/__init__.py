"""The one command: `hybridlm COMMAND ...`, also `python -m hybridlm`.

What a command needs is imported when it is called: `hybridlm --help` costs no torch, `hybridlm describe` no Lightning.
Exit codes: 0 done; 2 a mistake of the user's, told in one message; 130 stopped with Ctrl-C. A traceback is a bug of
ours (HYBRIDLM_DEBUG=1 shows one for the user's mistakes too).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from hybridlm.cli.complain import UsageError, readable
from hybridlm.errors import (
    CheckpointError,
    DataError,
    ExportError,
    PatternError,
    SpecError,
    StateError,
    UnsupportedError,
    did_you_mean,
)

MISTAKES = (
    *(PatternError, SpecError, StateError, DataError, CheckpointError, ExportError, UnsupportedError),
    *(UsageError, OSError),
)


@dataclass(frozen=True)
class Command:
    """A command: where its function is ("module:function"), what it does, and how it is used.

    Without an example its function reads the arguments itself, the command's name first, and has a --help of its own.
    """

    target: str
    summary: str
    example: str = ""

    def load(self) -> Callable:
        """The function behind the command, imported now."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


_TRAIN = "hybridlm.train.cli:main"
COMMANDS = {
    "fit": Command(_TRAIN, "train a model"),
    "validate": Command(_TRAIN, "loss, perplexity and bits per byte on the held-out text"),
    "test": Command(_TRAIN, "the same, under the names test_*"),
    "predict": Command(_TRAIN, "the loss of every held-out token"),
    "generate": Command(
        "hybridlm.infer.command:generate_command", "write text after a prompt", 'hybridlm generate RUN --prompt "def "'
    ),
    "eval": Command(
        "hybridlm.tasks.command:eval_command",
        "what a trained model answers to tasks with known answers",
        "hybridlm eval RUN --tasks mqar,needle --params mqar.pairs=16 --samples 500",
    ),
    "export": Command(
        "hybridlm.export.command:export_model",
        "write a model as vLLM, SGLang, llama.cpp and transformers read it, proved equal",
        "hybridlm export RUN OUT --to auto",
    ),
    "import": Command(
        "hybridlm.export.command:import_model",
        "read a Llama, Granite, ... checkpoint into a model that trains and generates here",
        "hybridlm import DIR OUT --prove",
    ),
    "describe": Command(
        "hybridlm.cli.describe:describe",
        "what a model costs: parameters, FLOPs, cache bytes; a picture",
        'hybridlm describe "(M3A)12" --d-model 1024 --context 2048,131072 --plot stack.svg',
    ),
    "ablate": Command(
        "hybridlm.ablate.command:ablate",
        "run a study: arms matched, seeds paired, claims judged",
        "hybridlm ablate configs/studies/recall-rescue.yaml --dry-run",
    ),
    "report": Command(
        "hybridlm.ablate.report.command:report",
        "verdicts, figures and tables of a study, from what has finished",
        "hybridlm report runs/studies/recall-rescue",
    ),
    "mixers": Command("hybridlm.cli.mixers:list_mixers", "every mixer and MLP that is known here", "hybridlm mixers"),
    "schema": Command(
        "hybridlm.cli.schema:print_schema", "JSON Schema of a model file", "hybridlm schema > model.schema.json"
    ),
    "doctor": Command(
        "hybridlm.cli.doctor:doctor", "what runs here, why, and what would be faster", "hybridlm doctor tiny"
    ),
    "tokenize": Command(
        "hybridlm.train.tokenize:tokenize",
        "train a tokenizer on text",
        "hybridlm tokenize --path texts --vocab-size 8192",
    ),
}


os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch loads: threads that wait spin briefly, then sleep


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has left is no error
        return code
    except KeyboardInterrupt:
        _tell("stopped", "Ctrl-C")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if os.environ.get("HYBRIDLM_DEBUG", "0") != "0":
            raise
        _tell(readable(error))
        return 2
    except SystemExit as exit:  # --help, or Lightning's own parser
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)


def _run(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name == "--version":
        return _print_version()
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}; commands: {', '.join(COMMANDS)}.{did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    if not command.example:
        return command.load()(argv) or 0
    from hybridlm.cli.parser import call

    return call(command.load(), rest, name=name, example=command.example) or 0


def _tell(message: str, title: str = "error") -> None:
    from hybridlm.train.console import panel

    panel(message, title)


def _print_version() -> int:
    from hybridlm import __version__

    print(f"hybridlm {__version__}")
    return 0


def overview() -> str:
    """The text of `hybridlm --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "hybridlm: from a layer pattern to a language model that trains, talks and says what it costs.",
            "",
            "usage: hybridlm COMMAND [options]        hybridlm COMMAND --help says more; hybridlm --version",
            "",
            *lines,
            "",
            "example: " + COMMANDS["describe"].example,
        ]
    )
