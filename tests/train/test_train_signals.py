"""Training on signals: what is generated, what is measured, and a model that reads half the rate when told."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import hybridlm as hl
from hybridlm.errors import DataError
from hybridlm.train import cli
from hybridlm.train.arguments import task_of
from hybridlm.train.data import TextData
from hybridlm.train.metrics import Commonest, Spread
from hybridlm.train.module import LitHybridLM
from hybridlm.train.signals import HELD_OUT, TRAINING, SignalData, accuracy

SMALL = {"classes": 3, "channels": 1, "rate": 50.0, "seconds": 1.0, "highest": 8.0, "noise": 0.05, "held_out": 200}
SPEC = """\
d_model: 24
embed: {type: linear, channels: 1}
head: {type: classify, classes: 3}
pattern: "[s4d]2"
blocks:
  s4d: {mixer: {type: s4d, d_state: 16}, mlp: none}
dropout: 0.1
"""


def data(**changes) -> SignalData:
    return SignalData(**(SMALL | changes))


@pytest.fixture
def spec(tmp_path):
    """Path of the YAML file of a small classifier of signals."""
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


# ------------------------------------------------------------------------------------------------------------- signals
def first(loader: DataLoader, count: int) -> list[dict]:
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def test_a_sample_is_a_function_of_seed_and_number():
    whole = first(data(batch_size=12).train_dataloader(), 2)
    signals = torch.cat([batch["inputs"] for batch in whole])
    assert signals.shape == (24, 50, 1)
    assert signals.dtype == torch.float32
    resumed = data(batch_size=4, workers=2)
    resumed.load_state_dict({"samples": 8})
    assert torch.equal(torch.cat([b["inputs"] for b in first(resumed.train_dataloader(), 4)]), signals[8:])
    second = next(iter(data(batch_size=4).training_samples(start=0, rank=1, world=2)))
    assert torch.equal(second["inputs"], signals[4:8])
    assert not torch.equal(first(data(batch_size=12, seed=1).train_dataloader(), 1)[0]["inputs"], signals[:12])


def test_no_held_out_signal_is_trained_on():
    drawn = data(noise=0.0).drawn
    families = [drawn.batch(family, np.arange(500))["inputs"] for family in (TRAINING, HELD_OUT)]
    seen, held = ({signal.numpy().tobytes() for signal in family} for family in families)
    assert len(seen | held) == 1000
    shuffled = data(noise=0.0, held_out=500).val_dataloader()
    assert {signal.numpy().tobytes() for batch in shuffled for signal in batch["inputs"]} == held


def test_the_same_signal_at_another_rate_is_the_same_function_of_time():
    fine, coarse = (data(noise=0.0, rate=rate).drawn.batch(HELD_OUT, np.arange(9)) for rate in (100.0, 50.0))
    assert torch.equal(fine["targets"], coarse["targets"])
    torch.testing.assert_close(fine["inputs"][:, 1::2], coarse["inputs"])


def test_noise_has_the_same_power_in_every_hz():
    for rate in (50.0, 200.0):
        clean, noisy = (data(noise=noise, rate=rate).drawn.batch(0, np.arange(200))["inputs"] for noise in (0, 0.1))
        assert (noisy - clean).std() == pytest.approx(0.1 * rate**0.5, rel=0.03)


def test_a_class_is_a_band_of_frequencies():
    drawn = data(noise=0.0, seconds=16.0, lowest=2.0, highest=16.0, channels=2).drawn
    batch = drawn.batch(TRAINING, np.arange(300))
    power = torch.fft.rfft(batch["inputs"], dim=1).abs().sum(dim=2)
    octaves = torch.log2(power.argmax(dim=1) / 16.0 / 2.0)
    assert torch.equal(octaves.floor().long(), batch["targets"])
    assert torch.bincount(batch["targets"]).min() > 70
    phases = batch["inputs"][:, 0]
    assert phases.mean().abs() < 0.1  # random: nothing but the frequency tells
    assert torch.corrcoef(phases.mT)[0, 1].abs() < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "data.classes: 1; an integer of at least 2"),
        ({"channels": 0}, "data.channels: 0"),
        ({"batch_size": 2.0}, "data.batch_size: 2.0"),
        ({"workers": -1}, "data.workers: -1"),
        ({"rate": 0.0}, "data.rate: 0.0"),
        ({"seconds": float("nan")}, "data.seconds: nan"),
        ({"noise": -1.0}, "data.noise: -1.0"),
        ({"lowest": 9.0}, "data.lowest: 9.0, data.highest: 8.0"),
        ({"rate": 16.0}, "data.highest: 8.0; 16 samples a second show frequencies below 8 only"),
        ({"seconds": 1e-3}, "data.seconds: 0.001"),
        ({"seconds": 1e9}, "data.seconds: "),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(DataError, match=message):
        data(**settings)


# ------------------------------------------------------------------------------------------------------------ measures
def test_what_guessing_gets():
    labels, numbers = torch.tensor([2, 0, 2, -100, 1, 2, -100, 0]), torch.randn(8, 5, 2) + 3
    numbers[1, 2, 0] = torch.nan
    classes, spread = Commonest(4), Spread(2)
    for rows in torch.arange(8).split(3):
        classes.update(labels[rows])
        spread.update(numbers[rows])
    assert float(classes.compute()) == pytest.approx(3 / 6)
    apart = numbers - numbers.flatten(0, 1).nanmean(dim=0)
    assert float(spread.compute()) == pytest.approx(float(apart.square().nanmean()), rel=1e-5)


class Numbers(pl.LightningDataModule):
    """A running sum of two channels, with pads on the right, whose inputs and targets mean nothing."""

    def batch(self, seed: int) -> dict[str, torch.Tensor]:
        inputs = torch.randn(6, 12, 2, generator=torch.Generator().manual_seed(seed))
        valid = torch.arange(12) < torch.tensor([12, 3, 7, 12, 1, 9])[:, None]
        targets = inputs.cumsum(dim=1).sum(dim=2, keepdim=True) / 4
        pads = ~valid[..., None]
        return {"inputs": inputs.masked_fill(pads, torch.nan), "targets": targets.masked_fill(pads, 99), "valid": valid}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(seed) for seed in range(200)], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(seed) for seed in range(900, 903)], batch_size=None)


def test_a_regression_is_trained_and_measured_beside_the_mean(tmp_path):
    path = tmp_path / "sum.yaml"
    path.write_text(
        "d_model: 32\nembed: {type: linear, channels: 2}\nhead: {type: regress, outputs: 1}\npattern: S\n"
        "blocks: {S: {mixer: {type: s4, d_state: 8}}}\n"
    )
    module, numbers = LitHybridLM(str(path), lr=1e-2, warmup=2), Numbers()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=120, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0, limit_val_batches=1.0,
        val_check_interval=120,
    )  # fmt: skip
    trainer.fit(module, datamodule=numbers)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {"train_loss", "lr", "val_loss", "val_guess"}
    assert metrics["val_loss"] < 0.5 * metrics["val_guess"]
    batches = [numbers.batch(seed) for seed in range(900, 903)]
    real = torch.cat([batch["targets"][batch["valid"]] for batch in batches])
    with torch.no_grad():
        answers = [module.eval().predict_step(batch, 0)[batch["valid"]] for batch in batches]
    assert metrics["val_loss"] == pytest.approx(float((torch.cat(answers) - real).square().mean()), rel=1e-4)
    assert metrics["val_guess"] == pytest.approx(float(real.var(correction=0)), rel=1e-4)


@pytest.mark.parametrize("pool", ["none", "last"])
@torch.no_grad()
def test_pads_are_not_measured(tmp_path, pool):
    """Whatever stands at them, the targets there included; a row of pads has no answer to be right or wrong."""
    path = tmp_path / "small.yaml"
    path.write_text(SPEC.replace("classes: 3}", f"classes: 3, pool: {pool}}}"))
    module, valid = LitHybridLM(str(path)).eval(), torch.arange(9) < torch.tensor([[9], [4], [0]])
    inputs = torch.randn(3, 9, 1)
    logits = module.model(inputs, valid=valid).logits
    real = valid if pool == "none" else valid.any(dim=1)
    targets = logits.argmax(dim=-1).where(real, 0)
    wrong = logits.argmin(dim=-1)
    targets[0] = wrong[0]
    module.validation_step({"inputs": inputs, "valid": valid, "targets": targets}, 0)
    found = {name: float(value) for name, value in module.score.measures().items()}
    assert found["accuracy"] == pytest.approx(4 / 13 if pool == "none" else 1 / 2)
    assert found["guess"] == pytest.approx(float(torch.bincount(targets[real]).max() / real.sum()))
    assert found["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[real], targets[real])), rel=1e-5
    )


# ------------------------------------------------------------------------------------------------------------ half rate
def test_a_trained_model_reads_half_the_rate_when_told(tmp_path):
    """Without being told, every frequency looks twice as high to it."""
    torch.manual_seed(0)
    model = hl.build(**(yaml.safe_load(SPEC) | {"dropout": 0.0}), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for batch in first(data().train_dataloader(), 120):
        model(batch["inputs"], targets=batch["targets"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    half = data(rate=25.0)
    whole, blind = accuracy(model, data()), accuracy(model, half)
    model.set_time_scale(2)
    told = accuracy(model, half)
    assert whole > 0.93
    assert blind < 0.5
    assert told > 0.9
    hl.save(model, tmp_path)
    assert accuracy(hl.load(tmp_path).eval(), half) == told


# -------------------------------------------------------------------------------------------------------- command line
SHORT = [*(f"--data.{name}={value}" for name, value in SMALL.items()), "--data.batch_size=8", "--checkpoint.every=2"]
QUICK = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu"]


@pytest.fixture
def fit(spec, tmp_path, monkeypatch):
    """fit(*options) -> exit code of a small run, with the shipped settings for all that is not said."""
    monkeypatch.chdir(tmp_path)
    base = [f"--model.spec={spec}", *SHORT, *QUICK]

    def run(*options):
        given = {option.partition("=")[0] for option in options}
        besides = [option for option in base if option.partition("=")[0] not in given]
        return cli.main(["fit", "--config", "train/signals", *besides, *options])

    return run


def test_a_run_from_the_command_line(fit, tmp_path, capsys):
    assert fit("--run=r") == 0
    shown = capsys.readouterr().out
    assert "val_accuracy" in shown
    assert "val_guess" in shown
    assert "bpb" not in shown
    assert "val_accuracy" in (tmp_path / "r/metrics.csv").read_text().splitlines()[0]
    assert yaml.safe_load((tmp_path / "r/config.yaml").read_text())["task"] == "signals"
    assert (tmp_path / "r/loss.png").exists()
    assert cli.main(["validate", "--resume=r", "--trainer.limit_val_batches=1.0"]) == 0
    assert "val_accuracy" in capsys.readouterr().out
    assert cli.main(["test", "--resume=r"]) == 0
    assert "test_guess" in capsys.readouterr().out
    assert cli.main(["predict", "--resume=r"]) == 0
    logits = load_file("r/logits.safetensors")["logits"]
    model, held = hl.load("r").eval(), data()
    right = sum(int((model(b["inputs"]).logits.argmax(-1) == b["targets"]).sum()) for b in held.predict_dataloader())
    targets = torch.cat([batch["targets"] for batch in held.predict_dataloader()])
    assert logits.shape == (200, 3)
    assert int((logits.argmax(dim=-1) == targets).sum()) == right


def test_a_resumed_run_is_the_run(fit):
    constant = ["--model.schedule=constant", "--model.warmup=0"]
    assert fit("--run=whole", *constant) == 0
    assert fit("--run=parts", *constant, "--trainer.max_steps=2") == 0
    assert cli.main(["fit", "--resume=parts", "--trainer.max_steps=4"]) == 0
    whole, parts = (
        torch.load(f"{run}/checkpoints/step-00000004/train.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task=text"], "unknown"),
        (["--task=sounds"], "'sounds' is not one of text, signals"),
        (["--data.rates=3"], "Did you mean '--data.rate'?"),
        (["--data.channels=2"], "data.channels: 2, but"),
        (["--data.classes=4"], "data.classes: 4, but"),
        (
            ["--model.spec=tiny"],
            "embed: tokens and head: lm; generated signals train embed: {type: linear, channels: 1}",
        ),
    ],
)
def test_a_mistake_is_one_panel(fit, capsys, options, words):
    assert fit(*options) == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error


def test_text_does_not_train_a_model_of_signals(spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text " * 500)
    assert cli.main(["fit", f"--model.spec={spec}", "--data.path=a.txt", "--data.context=8", "--data.cache=c"]) == 2
    assert "add --task signals" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_signal_has_one_class(spec):
    model = hl.ModelSpec.read(spec)
    data().require(model, "m.yaml")
    every = hl.ModelSpec.from_dict({**model.to_dict(), "head": {"type": "classify", "classes": 3, "pool": "none"}})
    with pytest.raises(DataError, match=r"head\.pool: none"):
        data().require(every, "m.yaml")
    with pytest.raises(DataError, match="head: classify, and text trains"):
        TextData.require(object(), every, "m.yaml")


def test_the_task_decides_what_data_options_mean(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("task: signals\n")
    config = ["fit", "--config", str(tmp_path / "c.yaml")]
    assert task_of(["fit"]) == "text"
    assert task_of(config) == "signals"
    assert task_of([*config, "--task", "text"]) == "text"
    assert task_of(["fit", "--task=signals", f"--config={tmp_path / 'c.yaml'}"]) == "signals"
    assert task_of(["fit", "--task"]) == "text"
    assert cli.main(["fit", "--task", "signals", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--data.rate" in shown
    assert "--data.tokenizer" not in shown
