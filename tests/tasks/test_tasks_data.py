"""TaskData: its batches, what a model must be to be trained on it, and a run from the command line to its results."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

import hybridlm as hl
from hybridlm.compose.model import Output
from hybridlm.errors import DataError, SpecError
from hybridlm.registry import tasks
from hybridlm.tasks.data import TaskData
from hybridlm.tasks.difficulty import within
from hybridlm.tasks.metrics import Share, TaskScore
from hybridlm.tasks.task import HELD_OUT, Task, make
from hybridlm.train import cli
from hybridlm.train.arguments import task_of
from hybridlm.train.module import LitHybridLM

SPEC = {
    "d_model": 32,
    "vocab_size": 32,
    "pattern": "A",
    "mlp": "none",
    "blocks": {"A": {"mixer": {"type": "attention"}}},
}
EASY = {"pairs": 1, "vocab_size": 32, "length": 8}


@pytest.fixture
def spec(tmp_path):
    """Writes a small model's file, with changes, and gives its path."""

    def write(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (SPEC | changes).items() if v is not None}))
        return str(path)

    return write


# --------------------------------------------------------------------------------------------------------------- data
def test_held_out_samples_are_the_first_of_their_family_in_a_fixed_order():
    data = TaskData("mqar", EASY, held_out=30, batch_size=8)
    ordered = torch.cat([batch["ids"] for batch in data.predict_dataloader()])
    assert torch.equal(ordered, data.samples.batch(HELD_OUT, range(30))["ids"])
    shuffled = torch.cat([batch["ids"] for batch in data.val_dataloader()])
    assert not torch.equal(ordered, shuffled)
    assert sorted(ordered.tolist()) == sorted(shuffled.tolist())


def test_batches_of_unequal_samples_have_one_shape_and_say_what_is_real():
    data = TaskData("copying", {"tokens": 12, "shortest": 6}, held_out=20, batch_size=5)
    for batch in [next(iter(data.train_dataloader())), *data.val_dataloader()]:
        assert batch["ids"].shape == batch["targets"].shape == batch["valid"].shape == (5, 25)
        assert torch.equal(batch["valid"].sum(1) % 2, torch.ones(5, dtype=torch.long))
        assert (batch["targets"][~batch["valid"]] == -100).all()
        assert (batch["ids"][~batch["valid"]] == 0).all()


def test_training_goes_on_from_any_sample():
    whole = next(iter(TaskData("mqar", batch_size=12).train_dataloader()))
    resumed = TaskData("mqar", batch_size=4)
    resumed.load_state_dict({"samples": 8})
    assert torch.equal(next(iter(resumed.train_dataloader()))["ids"], whole["ids"][8:])


@pytest.mark.parametrize("counts", [{"held_out": 0}, {"batch_size": True}, {"workers": -1}, {"held_out": 2.0}])
def test_bad_counts(counts):
    with pytest.raises(DataError, match=f"data.{next(iter(counts))}: .*an integer of at least"):
        TaskData("mqar", **counts)


def test_a_task_with_too_few_samples_is_refused_before_a_run():
    with pytest.raises(SpecError, match=r"draws gave no .* sample: .* has too few different ones"):
        TaskData("copying", {"vocab_size": 3, "tokens": 2})


# -------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 16}, "vocab_size: 16, and mqar has ids up to 31; at least 32 are needed"),
        ({"head": {"type": "classify", "classes": 9, "pool": "none"}}, "head.classes: 9, and mqar has ids up to 31"),
        ({"head": {"type": "classify", "classes": 32, "pool": "mean"}}, r"mqar asks .* not embed: tokens and head:"),
        ({"head": {"type": "regress", "outputs": 32}}, "mqar asks tokens at some positions: it needs embed: tokens"),
        (
            {"embed": {"type": "linear", "channels": 3}, "head": {"type": "regress", "outputs": 1}, "vocab_size": None},
            "mqar asks tokens",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(spec, changes, said):
    path = spec(**changes)
    with pytest.raises(DataError, match=said):
        TaskData("mqar", EASY).require(hl.build(path, device="meta").spec, path)


def test_a_model_of_tokens_is_refused_by_a_task_of_numbers(spec):
    data, path = TaskData("linear_regression"), spec()
    with pytest.raises(DataError, match=r"linear_regression asks numbers at some positions: it needs embed: {type"):
        data.require(hl.build(path, device="meta").spec, path)
    ends = {"embed": {"type": "linear", "channels": 77}, "head": {"type": "regress", "outputs": 66}}
    path = spec(vocab_size=None, **ends)
    with pytest.raises(DataError, match=r"channels: 77, and .* has \d+; make them the same\n.*outputs: 66"):
        data.require(hl.build(path, device="meta").spec, path)


# ------------------------------------------------------------------------------------------------------------- metrics
def test_score_is_that_of_answers_counted_by_hand():
    score = TaskScore(hl.build(SPEC, device="meta").spec, make("mqar", EASY))
    targets = torch.tensor([[-100, 3, 4, -100], [1, -100, -100, 2], [-100] * 4])
    answers = torch.tensor([[9, 3, 4, 9], [1, 9, 9, 5], [9] * 4])  # two right; one right and one wrong; none asked
    logits = torch.randn(3, 4, 32) + 20 * torch.nn.functional.one_hot(answers, 32)
    for rows in ([0], [1, 2]):
        score.update(Output(logits[rows], None), targets[rows])
    found = score.measures()
    assert found["accuracy"] == 0.75
    assert found["solved"] == 0.5
    assert found["guess"] == 1.0
    torch.testing.assert_close(found["loss"], cross_entropy(logits.flatten(0, 1), targets.flatten()))
    score.reset()
    assert score.accuracy.count == 0


def test_logits_that_are_no_numbers_answer_nothing():
    score = TaskScore(hl.build(SPEC, device="meta").spec, make("mqar", EASY))
    score.update(Output(torch.full((2, 3, 32), torch.nan), None), torch.tensor([[-100, 0, 0], [0, -100, 3]]))
    assert (score.measures()["accuracy"], score.measures()["solved"]) == (0, 0)


def test_score_of_numbers_is_the_squared_error_of_what_is_asked():
    task = make("linear_regression")
    ends = {"embed": {"type": "linear", "channels": task.channels}, "head": {"type": "regress", "outputs": 1}}
    score = TaskScore(hl.build(SPEC | ends | {"vocab_size": None}, device="meta").spec, task)
    targets = torch.tensor([[[torch.nan], [1.0]], [[3.0], [torch.nan]]])
    score.update(Output(torch.tensor([[[7.0], [2.0]], [[0.0], [7.0]]]), None), targets)
    found = score.measures()
    assert found.keys() == {"loss", "guess"}
    assert found["loss"] == 5.0


def test_share_counts_exactly_beyond_what_float32_holds():
    share = Share()
    share.count += (1 << 24) + 1
    share.update(torch.tensor([True]))
    assert share.count == (1 << 24) + 2


# ----------------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def echo():
    """A task of this process: say what you read."""

    @tasks.register("echo")
    @dataclass(frozen=True, kw_only=True)
    class Echo(Task):
        name: ClassVar[str] = "echo"
        vocab_size: int = within(32, 2, 64)
        length: int = within(8, 1, 64)

        def draw(self, random):
            ids = random.integers(self.vocab_size, size=self.length)
            return {"ids": ids, "targets": ids}

        def guess(self):
            return 1 / self.vocab_size

    yield
    tasks.unregister("echo")


def test_a_run_learns_more_than_guessing_and_goes_on(echo, spec, tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["--model.spec", spec(), "--model.lr", "1e-2", "--model.warmup", "2", "--trainer.max_steps", "60"]
    words += ["--trainer.val_check_interval", "30", "--trainer.enable_progress_bar", "false", "--run", run]
    difficulty = ["--data.params.length", "6", "--data.params.vocab_size", "32", "--data.held_out", "100"]
    assert cli.main(["fit", "--task", "echo", *difficulty, *words]) == 0
    said = capsys.readouterr().out
    assert "val_accuracy" in said
    assert "val_solved" in said
    assert "val_guess" in said
    with (tmp_path / "run" / "metrics.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["val_loss"]]
    assert float(measured[-1]["val_accuracy"]) > 5 * float(measured[-1]["val_guess"]) > 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["task"] == "echo"
    assert config["data"]["params"] == {"length": 6, "vocab_size": 32}
    assert cli.main(["validate", "--resume", run]) == 0
    assert "val_solved" in capsys.readouterr().out


def test_every_task_is_known_to_the_command_line(capsys):
    for name in tasks.names():
        assert task_of(["fit", "--task", name]) == name
    assert cli.main(["fit", "--task", "mqr", "--model.spec", "tiny"]) == 2
    assert "Did you mean 'mqar'?" in capsys.readouterr().err


def test_all_problems_of_a_difficulty_are_told_before_a_run(spec, capsys):
    bad = ["--data.params.pears", "3", "--data.params.length", "7"]
    assert cli.main(["fit", "--task", "mqar", *bad, "--model.spec", spec()]) == 2
    said = capsys.readouterr().err
    assert "mqar.pears: unknown field; did you mean pairs?" in said
    assert "mqar.length: 7 is odd" in said


@pytest.mark.parametrize("head", ["lm", {"type": "classify", "classes": 32, "pool": "none"}])
def test_validation_measures_what_the_model_answers(spec, head):
    path = spec(head=head)
    data, module = TaskData("mqar", EASY, held_out=20, batch_size=20), LitHybridLM(path)
    module.score = data.score(module.model.spec)
    batch = next(iter(data.predict_dataloader()))
    module.eval()
    with torch.no_grad():
        module.validation_step(batch, 0)
        logits = module.model(batch["ids"]).logits
    found, asked = module.score.measures(), batch["targets"] != -100
    assert found["accuracy"] == (logits.argmax(-1) == batch["targets"])[asked].float().mean()
    assert np.isclose(found["loss"], module.loss(batch).item(), rtol=1e-6)
