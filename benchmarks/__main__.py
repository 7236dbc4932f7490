"""The command line: `python -m benchmarks COMMAND --help`."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from hybridlm.command_line import Parser

COMMANDS = {  # name: (module, function that runs it, function that adds its options, its example, what it does)
    "train": ("train", "main", "add_options", "EXAMPLE", "training steps of the same model in each package"),
    "decode": ("inference", "decode", "add_decode_options", "DECODE_EXAMPLE", "milliseconds a token after a prompt"),
    "prefill": ("inference", "prefill", "add_prefill_options", "PREFILL_EXAMPLE", "reading a prompt"),
    "ops": ("ops", "main", "add_options", "EXAMPLE", "single ops, each backend beside other packages"),
    "ratios": ("ratios", "main", "add_options", "EXAMPLE", "the headline ratios of the literature, on this machine"),
    "twins": ("twins", "main", "add_options", "EXAMPLE", "a small hybrid beside transformers' CPU path"),
    "zoo": ("zoo", "main", "add_options", "EXAMPLE", "each mixer of hybridlm by itself"),
    "kit": (
        "kit",
        "main",
        "add_options",
        "EXAMPLE",
        "the laws of state over mixers and backends, worst error over limit",
    ),
    "report": ("report", "main", "add_options", "EXAMPLE", "write the tables of benchmarks/README.md from runs"),
}


FROM_ZERO = ("warmup", "jobs")


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 if anything was measured."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv and not argv[0].startswith("-") else None
    args = _parser(name).parse_args(argv)
    args.argv = argv
    module, function = COMMANDS[args.command][:2]
    try:
        _check(args)
        return getattr(importlib.import_module(f"benchmarks.{module}"), function)(args)
    except ValueError as error:  # a wrong option; hybridlm's own errors say what is allowed
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2
    except (Exception, KeyboardInterrupt) as error:  # what was measured so far is not lost
        return _salvaged(error)


def _check(args: argparse.Namespace) -> None:
    """ValueError, before anything is measured, and nothing of an earlier run is replaced: a number, device or folder
    that cannot be meant."""
    from hybridlm.checks import real, whole
    from hybridlm.compose.memory import require_device

    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, float):
            real(option, value, low=1e-9)
        elif isinstance(value, int) and not isinstance(value, bool) and name != "seed":
            whole(option, value, low=0 if name in FROM_ZERO else 1, high=1 << 40)
    if "device" in args and args.command != "twins":  # those take a CPU alone, and say so
        require_device(args.device)
    out = vars(args).get("out")
    if out and Path(out).is_file():
        raise ValueError(f"--out: {out} is a file; give a folder")


def _salvaged(error: BaseException) -> int:
    """Say what went wrong and show the rows that there are."""
    from benchmarks.run import Run

    traceback.print_exception(error)
    if Run.latest is not None:
        Run.latest.finish()
    return 1


def _parser(name: str | None) -> Parser:
    """Only the command that is asked for imports its module."""
    parser = Parser(prog="python -m benchmarks", description="How fast hybridlm is, beside others.")
    parser.epilog = "Results go to --out as JSON, CSV and a picture; `report` writes them into benchmarks/README.md."
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (module, _, options, example, about) in COMMANDS.items():
        plain = argparse.RawDescriptionHelpFormatter
        one = commands.add_parser(command, help=about, formatter_class=plain, allow_abbrev=False)
        if command != name:
            continue
        found = importlib.import_module(f"benchmarks.{module}")
        one.description, one.epilog = found.__doc__, f"example:\n  {getattr(found, example)}"
        if command not in ("kit", "report"):
            _common(one)
        getattr(found, options)(one)  # last, as it may set other defaults
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    """What every measuring command takes."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="default here: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contender gets; default %(default)s")
    parser.add_argument("--calls", type=int, default=3, help="timed calls of a turn; default %(default)s")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="timed calls of a turn: as many as fit, 3 to 50; not --calls"
    )
    parser.add_argument("--warmup", type=int, default=2, help="calls before the first turn's; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens; default 0")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="begin nothing new after that long")
    parser.add_argument("--out", metavar="FOLDER", help="default runs/benchmarks/COMMAND")


if __name__ == "__main__":
    sys.exit(main())
