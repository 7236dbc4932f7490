"""hybridlm eval: what it measures is what the model answers, whatever the batches and pieces; what it says of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
import yaml

import hybridlm as hl
from hybridlm import cli
from hybridlm.tasks import heat_map
from hybridlm.tasks.command import eval_command, trained_on
from hybridlm.tasks.evaluate import Answers, cells, measure
from hybridlm.tasks.proportion import wilson
from hybridlm.tasks.task import HELD_OUT, Samples, make
from hybridlm.train import cli as training

SPEC = {
    "d_model": 32,
    "vocab_size": 256,
    "pattern": "MA",
    "mlp": "none",
    "blocks": {"M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 16}}, "A": {"mixer": {"type": "attention"}}},
}


@pytest.fixture
def model():
    return hl.build(SPEC, seed=0)


@pytest.fixture
def saved(model, tmp_path):
    """A folder with a saved model."""
    hl.save(model, tmp_path / "saved")
    return str(tmp_path / "saved")


# --------------------------------------------------------------------------------------------------------- measurement
@pytest.mark.parametrize("name", ["mqar", "copying", "phonebook"])
def test_measures_are_those_of_the_whole_logits_whatever_the_batches_and_pieces(model, name):
    task = make(name, {"tokens": 9, "shortest": 3} if name == "copying" else {})
    batch = Samples(task, 3).batch(HELD_OUT, range(10))
    with torch.no_grad():
        logits = model(batch["ids"], valid=batch.get("valid")).logits
    where = batch["targets"] != -100
    right = logits.argmax(-1) == batch["targets"]
    found = measure(model, task, 10, seed=3)
    assert (found.low, found.high) == wilson(found.accuracy, 10)
    assert found.accuracy == right[where].float().mean()
    assert found.solved == (right | ~where).all(1).float().mean()
    loss = torch.nn.functional.cross_entropy(logits[where], batch["targets"][where])
    assert np.isclose(found.loss, loss.item(), rtol=1e-5)
    for how in ({"batch_size": 3}, {"chunk": 7}, {"chunk": 16, "batch_size": 4}):
        other = measure(model, task, 10, seed=3, **how)
        assert other == dataclasses.replace(found, loss=other.loss)
        assert np.isclose(other.loss, found.loss, rtol=1e-5)
    assert measure(model, task, 10, seed=4).loss != found.loss


def test_a_model_keeps_its_mode(model):
    model.train()
    measure(model, make("mqar"), 1)
    assert model.training


def test_numbers_are_measured_by_their_squared_error():
    task = make("linear_regression")
    ends = {"embed": {"type": "linear", "channels": task.channels}, "head": {"type": "regress", "outputs": 1}}
    model = hl.build({k: v for k, v in SPEC.items() if k != "vocab_size"} | ends, seed=0)
    batch = Samples(task, 0).batch(HELD_OUT, range(8))
    with torch.no_grad():
        apart = (model(batch["inputs"]).logits - batch["targets"]).square()
    found = measure(model, task, 8, chunk=5)
    assert np.isclose(found.loss, apart[~apart.isnan()].mean().item(), rtol=1e-5)
    assert found.accuracy is found.low is found.solved is None


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (1.0, 10), (0.3, 10), (0.99, 1000)])
def test_interval_is_wilsons(share, count):
    """Its ends are the shares p from which the one that was seen is 1.96 standard errors away."""
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert np.isclose(abs(end - share) / np.sqrt(end * (1 - end) / count), 1.959964, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- the command
def rows(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)


def test_tasks_and_difficulties_are_read_from_the_command_line(saved, capsys):
    words = ["--tasks", "mqar,mqar_packed", "copying", "--params", "length=128", "mqar.pairs=16", "copying.tokens=4"]
    assert cli.main(["eval", saved, *words, "--samples", "6", "--json"]) == 0
    mqar, packed, copying = rows(capsys)
    assert (mqar["task"], packed["task"], copying["task"]) == ("mqar", "mqar_packed", "copying")
    assert (mqar["difficulty"]["length"], mqar["difficulty"]["pairs"]) == (128, 16)
    assert packed["difficulty"]["length"] == 128
    assert copying["difficulty"] == {"vocab_size": 28, "tokens": 4, "shortest": None}
    assert (mqar["guess"], mqar["samples"]) == (1 / 16, 6)


def test_what_is_said_of_one_task_wins_wherever_it_stands(saved, capsys):
    asked = ["--tasks", "mqar,mqar_packed", "--samples=2", "--json", "--params"]
    for words in (["length=128", "mqar.length=64"], ["mqar.length=64", "length=128"]):
        assert cli.main(["eval", saved, *asked, *words]) == 0
        assert [row["difficulty"]["length"] for row in rows(capsys)] == [64, 128]


def test_csv_holds_what_json_holds(saved, capsys):
    assert cli.main(["eval", saved, "--tasks", "mqar", "--samples", "5", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert cli.main(["eval", saved, "--tasks", "mqar", "--samples", "5", "--json"]) == 0
    (same,) = rows(capsys)
    assert row["difficulty"] == " ".join(f"{key}={value}" for key, value in same.pop("difficulty").items())
    assert {name: str(value) for name, value in same.items()} == {k: v for k, v in row.items() if k != "difficulty"}


def test_the_table_names_the_guess(saved, capsys):
    assert cli.main(["eval", saved, "--tasks", "induction_heads", "--samples", "5"]) == 0
    said = capsys.readouterr().out
    assert "5 held-out samples" in said
    assert "0.06667" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "tasks: which? --tasks mqar,needle, for example; known: mqar,"),
        (["--tasks", ","], "tasks: which? --tasks mqar,needle"),
        (["--tasks", "mqr"], "unknown task 'mqr'; known: mqar,"),
        (["--tasks", "mqar", "--params", "pairs"], "'pairs'; it must be field=value or task.field=value"),
        (
            ["--tasks", "mqar", "--params", "copying.tokens=3"],
            "'copying' is none of the tasks asked for, which are mqar",
        ),
        (
            ["--tasks", "mqar,copying", "--params", "tokens=x", "mqar.pears=1"],
            "mqar.pears: unknown field; did you mean",
        ),
        (["--tasks", "mqar", "--params", "pairs=4", "--params", "pairs=5"], "'pairs=4' and 'pairs=5'; once, please"),
        (["--tasks", "mqar", "--samples", "4", "--samples", "5"], "--samples: given twice, '4' and '5'"),
        (["--tasks", "mqar", "--params", "nonsense=1"], "mqar.nonsense: unknown field; known: vocab_size, length"),
        (["--tasks", "mqar", "--params", "vocab_size=512"], "vocab_size: 256, and mqar has ids up to 511"),
        (["--tasks", "mqar,linear_regression"], "linear_regression asks numbers at some positions"),
        (["--tasks", "mqar", "--samples", "0"], "--samples: 0 is out of range"),
        (["--tasks", "mqar", "--json", "--csv"], "--json and --csv: one of them"),
        (["--tasks", "mqar", "--device", "gpu"], "device: 'gpu'; it must be one of auto, cpu"),
        (
            ["--tasks", "mqar", "--plot", "a.png"],
            "plot: a heat map needs a depth and a length, and only phonebook, needle",
        ),
        (["--tasks", "needle", "--plot", "a.gif"], "a picture is written as .svg or .png"),
        (["--tasks", "needle", "--plot", "none/a.png"], "the folder none does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(saved, words, said, capsys):
    assert cli.main(["eval", saved, *words]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert said in " ".join(printed.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--samples", "0", "--batch-size", "-1"],
            ["--samples: 0 is out of range", "--batch-size: -1 is out of range"],
        ),
        (
            ["--params", "nonsense", "mqar.pears=2", "copying.vocab_size=3", "copying.tokens=2"],
            ["'nonsense'; it must be field=value", "mqar.pears: unknown field", "copying: 2000 draws gave no held-out"],
        ),
    ],
)
def test_all_mistakes_are_told_at_once_and_before_anything_is_measured(saved, words, said, capsys, monkeypatch):
    monkeypatch.setattr("hybridlm.tasks.command.measure", None)
    assert cli.main(["eval", saved, "--tasks", "mqar", "copying", *words]) == 2
    told = capsys.readouterr().err
    assert all(line in told for line in said), told


def test_a_model_of_lost_numbers_is_right_about_nothing(model, tmp_path, capsys):
    with torch.no_grad():
        model.final_norm.weight.fill_(torch.nan)
    hl.save(model, tmp_path / "lost")
    assert cli.main(["eval", str(tmp_path / "lost"), "--tasks", "parity", "--samples", "4", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["solved"], found["loss"]) == (0.0, 0.0, None)


def test_a_run_is_measured_on_what_it_was_trained_on_and_as_its_own_validation(tmp_path, capsys):
    path, run = tmp_path / "m.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(SPEC))
    words = ["--data.params.tokens", "2", "--data.params.vocab_size", "40", "--data.seed", "5", "--data.held_out", "70"]
    words += ["--trainer.max_steps", "12", "--trainer.val_check_interval", "12", "--model.lr", "1e-2"]
    words += ["--trainer.enable_progress_bar", "false", "--run", str(run), "--model.spec", str(path)]
    assert training.main(["fit", "--task", "copying", *words]) == 0
    capsys.readouterr()
    assert trained_on(str(run)) == {"task": "copying", "params": {"tokens": 2, "vocab_size": 40}, "seed": 5}
    assert trained_on(str(run / "model")) == trained_on(str(run))
    eval_command(str(run), samples=70, json=True)
    (found,) = rows(capsys)
    assert found["difficulty"] == {"vocab_size": 40, "tokens": 2, "shortest": None}
    measured = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["val_loss"]][-1]
    for name in ("accuracy", "solved", "loss", "guess"):
        assert np.isclose(float(measured[f"val_{name}"]), found[name], rtol=1e-5)
    eval_command(str(run), tasks=["copying", "mqar"], params=["tokens=3"], samples=2, seed=1, json=True)
    harder, other = rows(capsys)
    assert harder["difficulty"] == {"vocab_size": 40, "tokens": 3, "shortest": None}
    assert (harder["seed"], other["seed"], other["difficulty"]["pairs"]) == (1, 1, 8)


def test_a_model_that_was_trained_on_text_has_no_task_of_its_own(tmp_path):
    (tmp_path / "config.yaml").write_text("task: text\ndata: {context: 3}\n")
    assert trained_on(str(tmp_path)) == {}
    assert trained_on(str(tmp_path / "nowhere")) == {}


# ------------------------------------------------------------------------------------------------------------- heat map
def test_cells_cover_depths_and_lengths_that_have_room():
    found = [(cell.depth, cell.length) for cell in cells(make("needle", {"length": 400}))]
    assert {length for _, length in found} == {100, 200, 400}
    assert {depth for depth, _ in found} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(found) == 15


def test_table_puts_each_cell_in_its_place():
    def cell(depth, length, accuracy):
        about = {"task": "needle", "samples": 1, "seed": 0, "loss": 0.0, "guess": 0.1}
        return Answers(difficulty={"depth": depth, "length": length}, accuracy=accuracy, **about)

    ups, rights, values = heat_map.table(("depth", "length"), [cell(0.5, 64, 0.25), cell(0.0, 8, 0.75)])
    assert (ups, rights) == ([0.0, 0.5], [8, 64])
    assert np.array_equal(values, [[0.75, np.nan], [np.nan, 0.25]], equal_nan=True)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_heat_map_is_drawn(saved, tmp_path, capsys, suffix):
    file = tmp_path / f"map.{suffix}"
    tiny = ["--params", "length=150", "digits=1", "--samples", "2", "--batch-size", "20"]
    assert cli.main(["eval", saved, "--tasks", "needle,mqar", *tiny, "--plot", str(file)]) == 0
    assert f"picture: {file}" in capsys.readouterr().err
    assert file.read_bytes()[:4] in (b"<?xm", b"\x89PNG")
