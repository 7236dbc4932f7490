"""An option of one value is given once, wherever a command line is read."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main as benchmarks
from hybridlm.command_line import Parser, given_twice
from hybridlm.testing.__main__ import main as laws
from hybridlm.train.demo import main as demo


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("fit --task a --task b", "--task: given twice, 'a' and 'b'; it takes one value"),
        ("--task=a --seed 3 --task b", "--task: given twice, 'a' and 'b'"),
        ("--a.b 1 --a.b=1", "--a.b: given twice, '1' and '1'"),
        ("--a.b= --a.b --c 1", "--a.b: given twice, '' and"),
        ("--a.b 1 --a x.yaml", "--a: 'x.yaml' would take the place of --a.b '1'; say it before that"),
        ("--a x.yaml --a.b 1 --a.c 2 --ab 3 --a.bc 4", None),
        ("--cs+ X --cs.n 1 --cs+=Y --cs.n 2", None),
        ("--cs+ X --cs.n 1 --cs.n 2", "--cs.n: given twice, '1' and '2'"),
        ("--config a --config b --n 1 -1", None),
        ("--n 1 -- --n 2", None),
        ("", None),
    ],
)
def test_an_option_is_given_once(line, wrong):
    said = given_twice(line.split(), lambda option: option != "--config")
    assert said is None if wrong is None else said.startswith(wrong)


def test_a_value_that_looks_like_an_option_is_none():
    """argparse takes `--prompt "--n 1"` so as well."""
    assert given_twice(["--prompt", "--n 1", "--after", "--n 1"], lambda option: True) is None
    parser = Parser()
    parser.add_argument("--prompt")
    assert parser.parse_args(["--prompt", "--n 1"]).prompt == "--n 1"


def test_switches_and_lists_may_be_repeated(capsys):
    parser = Parser()
    parser.add_argument("--on", action="store_true")
    parser.add_argument("--laws", nargs="+", action="extend")
    parser.add_argument("--n", type=int)
    given = parser.parse_args(["--on", "--laws", "a", "--on", "--laws", "b", "c", "--n", "1"])
    assert (given.on, given.laws, given.n) == (True, ["a", "b", "c"], 1)
    with pytest.raises(SystemExit):
        parser.parse_args(["--n", "1", "--n", "2"])
    assert "--n: given twice, '1' and '2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (benchmarks, ["zoo", "M", "--d-model", "32", "--d-model=64"]),
        (laws, ["mamba2", "--d-model", "32", "--d-model", "64"]),
        (demo, ["--minutes", "32", "--minutes", "64"]),
    ],
)
def test_every_command_line_refuses_it(command, line, capsys):
    with pytest.raises(SystemExit) as end:
        command(line)
    assert end.value.code == 2
    assert "given twice, '32' and '64'" in capsys.readouterr().err
