"""The command line of training: what its words mean before they are parsed, and what is said when they cannot be."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from hybridlm.command_line import given_twice
from hybridlm.compose import strict_yaml
from hybridlm.errors import CheckpointError, SpecError, did_you_mean
from hybridlm.registry import TASKS, datasets, tasks
from hybridlm.resources import find_config
from hybridlm.train.checkpoint import checkpoint_folder
from hybridlm.train.console import panel

REPEATED = ("--config", "--help", "--print_config")  # each config over the one before
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}


def known_tasks() -> tuple[str, ...]:
    """What there is to train on."""
    return (*(name for name in datasets.names() if name != TASKS), *tasks.names())


def task_of(argv: list[str]) -> str:
    """The task that the command line asks for, or the last of its configs that does: it decides what --data.* means."""
    task, words = "text", iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        value = value if equals else next(words, "") if option in ("--task", "--config") else ""
        if option == "--task":
            task = value
        elif option == "--config":
            content = strict_yaml.compose(Path(value).read_text(encoding="utf-8"), name=value)
            task = content.get("task", task) if isinstance(content, dict) else task
    return task if task in known_tasks() else "text"  # the parser says what is wrong


def expand(argv: list[str]) -> list[str]:
    """`--config NAME` -> the file, checked; `--resume RUN` -> RUN's config and newest checkpoint.

    What is resumed goes ahead, then the configs, so that an option wins over every file wherever it stands.

    Raises:
        SpecError: an option is given twice; no such config, or one that is no plain YAML (an alias, a tag, a key
            twice, a binary file).
        CheckpointError: nothing to resume from.
    """
    if wrong := given_twice(argv, lambda option: option not in REPEATED):
        raise SpecError(wrong)
    resumed, configs, others, words = [], [], [], iter(argv[1:])
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("--resume", "--config", "-c"):
            others.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise SpecError(f"{option}: which one? It takes {'a run folder' if option == '--resume' else 'a file'}")
        if option == "--resume":
            resumed = _of_run(value)
        else:
            configs += ["--config", str(_checked(value))]
    return [*argv[:1], *resumed, *configs, *others]


def _checked(config: str) -> Path:
    path = find_config(config)
    with open(path, "rb") as file:
        content = file.read(strict_yaml.MAX_BYTES + 1)
    try:
        strict_yaml.compose(content.decode("utf-8"), name=str(path))  # its ${...} wait for the command line
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); is it a binary file?") from None
    return path


def _of_run(place: str) -> list[str]:
    checkpoint = checkpoint_folder(place)
    run = checkpoint.parents[1]
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run}: no config.yaml; this is not a run folder")
    here = ["--config", str(run / "config.yaml"), "--run", str(run), "--ckpt_path", str(checkpoint)]
    here += ["--model.spec", str(run / "model.yaml")]  # wherever the run folder has moved to
    here += ["--data.tokenizer", str(run / "tokenizer.json")] if (run / "tokenizer.json").is_file() else []
    return here


class Parser(LightningArgumentParser):
    """Says what is wrong, where, and what was probably meant, instead of screens of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one panel and exit with 2."""
        panel(self._explain(message.strip()), "command line")
        raise SystemExit(2)

    def _explain(self, message: str) -> str:
        if "are required" in message and "model.spec" in message:
            return "missing: --model.spec; for example --model.spec configs/models/tiny.yaml"
        if key := re.match(r'Parser key "([\w.]+)":', message):
            return _mistyped(key[1], message)
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            return f"unknown option {unknown[1]!r}.{did_you_mean(unknown[1].partition('=')[0], self._options())}"
        if unknown := re.search(r"does not accept (?:option|nested key) '([\w.]+)'", message):
            return f"unknown key {unknown[1]!r} in a config.{did_you_mean('--' + unknown[1], self._options())}"
        return message

    def _options(self) -> list[str]:
        """Every --option of this parser and of the commands below it."""
        below = [action.choices.values() for action in self._actions if isinstance(action.choices, dict)]
        parsers = [self, *chain.from_iterable(below)]
        return [option for parser in parsers for action in parser._actions for option in action.option_strings]


def _mistyped(key: str, message: str) -> str:
    """jsonargparse names the Python types that it tried; a reader wants the words that would have been right."""
    given = re.findall(r"(?:Given|Got) value: (.*)", message)
    if not given:
        return message
    words = [word for group in re.findall(r"Literal\[(.*?)\]", message) for word in re.findall(r"[\w.\-]+", group)]
    kinds = [_KINDS[kind] for kind in re.findall(r"<class '(\w+)'>", message) if kind in _KINDS]
    allowed = f"one of {', '.join(dict.fromkeys(words))}" if words else " or ".join(dict.fromkeys(kinds))
    value = given[-1].strip().strip("'\"")
    return f"--{key}: {value!r} is not {allowed or 'what it takes'}.{did_you_mean(value, words)}"
