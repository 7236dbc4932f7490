"""hybridlm fit | validate | test | predict: settings arrive, a mistake is one panel, a run is one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hybridlm as hl
from hybridlm.resources import config_names, config_path
from hybridlm.train import callbacks, cli
from hybridlm.train.data import TextData
from hybridlm.train.tokenize import train_tokenizer

SMALL = ["--data.context=16", "--data.batch_size=2", "--data.held_out=0.2", "--trainer.accelerator=cpu"]
QUICK = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fit(here, spec, texts):
    """fit(*options) -> exit code of a small run."""
    base = [f"--model.spec={spec}", f"--data.path={texts}", *SMALL, *QUICK]
    return lambda *options: cli.main(["fit", *besides(base, options), *options])


def besides(base, options):
    """The options of `base` that are not given: twice is a mistake."""
    given = {option.partition("=")[0] for option in options}
    return [option for option in base if option.partition("=")[0] not in given]


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def test_a_run_is_one_folder(fit, here, spec, capsys):
    assert fit() == 0
    run = here / "runs" / "small" / "0"
    names = {"config.yaml", "model.yaml", "checkpoints", "model", "metrics.csv", "loss.png", "tensorboard", ".lock"}
    assert {path.name for path in run.iterdir()} == names
    assert (run / "model.yaml").read_text() == spec.read_text()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "val_bpb" in (run / "metrics.csv").read_text().splitlines()[0]
    assert hl.load(run).spec.d_model == 32
    assert "val_bpb" in capsys.readouterr().out
    assert fit() == 0
    assert (here / "runs" / "small" / "1").is_dir()
    assert cli.RUN_VARIABLE not in os.environ


def test_an_override_reaches_interpolations(fit, here):
    """With parser_mode "omegaconf" the file's own value would arrive at the other places."""
    (here / "c.yaml").write_text(
        "seed_everything: 3\nmodel: {seed: '${seed_everything}'}\ndata: {seed: '${model.seed}'}\n"
        "checkpoint: {every: '${trainer.max_steps}'}\n"
    )
    assert fit("--config=c.yaml", "--seed_everything=7", "--run=r") == 0
    saved = config(here / "r")
    assert (saved["seed_everything"], saved["model"]["seed"], saved["data"]["seed"]) == (7, 7, 7)
    assert saved["checkpoint"]["every"] == 4


def test_an_option_wins_over_a_config_wherever_it_stands(here, spec, capsys):
    (here / "a.yaml").write_text("model: {lr: 0.5, warmup: 7}\ntrainer: {max_steps: 7}\n")
    (here / "b.yaml").write_text("model: {warmup: 9}\n")
    configs = ["--config=a.yaml", "--config", "b.yaml"]
    assert cli.main(["fit", f"--model.spec={spec}", "--model.lr=0.25", *configs, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["model"]["lr"], shown["model"]["warmup"], shown["trainer"]["max_steps"]) == (0.25, 9, 7)


def test_shipped_configs_are_read(here, spec, texts, capsys):
    names = [name for name in config_names() if name.startswith(("train/", "quickstart/"))]
    assert names
    for name in names:
        options = [f"--config={config_path(name)}"]
        if "task: " not in config_path(name).read_text():
            options += [f"--model.spec={spec}", f"--data.path={texts}"]
        assert cli.main(["fit", *options, "--print_config"]) == 0, name
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["seed"] == 0


def test_resume_goes_on_with_the_same_settings(fit, here, capsys):
    assert fit("--run=r", "--model.lr=0.01") == 0
    whole = hl.load("r")
    assert cli.main(["fit", "--resume=r", "--trainer.max_steps=6"]) == 0
    assert sorted(p.name for p in (here / "r" / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert config(here / "r")["model"]["lr"] == 0.01
    assert config(here / "r")["ckpt_path"] is None
    assert {"metrics.csv", "metrics.0.csv"} <= {p.name for p in (here / "r").iterdir()}  # the first part is kept
    assert not torch.equal(hl.load("r").embed.weight, whole.embed.weight)


def test_a_run_moves_with_its_folder(fit, here, tmp_path_factory, monkeypatch, spec):
    assert fit("--run=r") == 0
    place = tmp_path_factory.mktemp("elsewhere")
    (here / "r").rename(place / "moved")
    spec.unlink()
    monkeypatch.chdir(place)
    assert cli.main(["validate", "--resume", "moved"]) == 0


def test_ctrl_c_exits_130_and_says_how_to_resume(fit, here, monkeypatch, capsys):
    step = callbacks.NonFiniteGuard.on_before_optimizer_step

    def press(guard, trainer, pl_module, optimizer):
        step(guard, trainer, pl_module, optimizer)
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.NonFiniteGuard, "on_before_optimizer_step", press)
        assert fit("--run=r") == 130
    assert "hybridlm fit --resume r" in capsys.readouterr().err
    assert cli.main(["fit", "--resume", "r"]) == 0


def test_measures_of_a_run(fit, here, capsys):
    assert fit("--run=r") == 0
    capsys.readouterr()
    assert cli.main(["validate", "--resume=r", "--trainer.limit_val_batches=null"]) == 0
    assert "val_ppl" in capsys.readouterr().out
    assert cli.main(["test", "--resume=r"]) == 0
    assert "test_bpb" in capsys.readouterr().out
    before = sorted(p.name for p in here.joinpath("r").rglob("*"))
    assert cli.main(["predict", "--resume=r"]) == 0
    nll = load_file("r/nll.safetensors")["nll"]
    assert nll.shape[1] == 16
    assert nll.mean() > 0
    assert set(before) | {"nll.safetensors"} == {p.name for p in here.joinpath("r").rglob("*")}


def test_a_tokenizer_goes_with_the_run(fit, here, spec, texts):
    train_tokenizer(str(texts), vocab_size=300, output="t.json")
    spec.write_text(spec.read_text().replace("vocab_size: 256", "vocab_size: 300"))
    assert fit("--run=r", "--data.tokenizer=t.json", "--data.context=8") == 0
    assert json.loads((here / "r" / "tokenizer.json").read_text()) == json.loads((here / "t.json").read_text())
    (here / "t.json").unlink()
    assert cli.main(["validate", "--resume=r"]) == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--data.contxt=3"], 2, "unknown option '--data.contxt=3'. Did you mean '--data.context'?"),
        (["--data.contex=3"], 2, "unknown option '--data.contex=3'. Did you mean '--data.context'?"),
        (["--model.lr=fast"], 2, "--model.lr: 'fast' is not a number"),
        (["--config=none.yaml"], 2, "none.yaml"),
        (["--config"], 2, "--config: which one? It takes a file"),
        (["--config="], 2, "--config: which one? It takes a file"),
        (["--resume"], 2, "--resume: which one? It takes a run folder"),
        (["--run=small.yaml"], 2, "small.yaml: a file; a run is a folder"),
        (["--model.lr=1", "--model.lr", "2"], 2, "--model.lr: given twice, '1' and '2'; it takes one value"),
        (["--task=mqar", "--task=text"], 2, "--task: given twice, 'mqar' and 'text'"),
        (["--resume=a", "--resume=b"], 2, "--resume: given twice, 'a' and 'b'"),
        (["--trainer.max_steps=3", "--trainer=t.yaml"], 2, "--trainer: 't.yaml' would take the place of"),
        (["--data.path=none"], 2, "no such file or folder: 'none'"),
        (["--data.context=100000"], 2, "data.context: 100000 tokens"),
        (["--model.spec=none.yaml"], 2, "none.yaml"),
        (["--model.schedule=wds"], 2, "'wds' is not one of cosine, wsd, constant. Did you mean 'wsd'?"),
        (["--trainer.precision=bf17"], 2, "16-mixed, bf16-true, bf16-mixed, 32-true"),
        (["--model.betas=[2,3]"], 2, "model.betas: (2.0, 3.0); it must be two numbers from 0 to below 1"),
        (["--trainer.accelerator=foo"], 2, "You selected an invalid accelerator name: `accelerator='foo'`"),
        (["--seed_everything=-1"], 2, "-1 is not in bounds"),
        (["--trainer.val_check_interval=0"], 2, "trainer.val_check_interval: 0; it must be above 0"),
        (["--trainer.log_every_n_steps=0"], 2, "trainer.log_every_n_steps: 0; it must be above 0"),
        (["--trainer.default_root_dir=x"], 2, "trainer.default_root_dir: x; --run names the folder of a run"),
        (["--trainer.max_epochs=1"], 2, "trainer.max_epochs: 1; training counts steps"),
        (["--trainer.limit_train_batches=3"], 2, "trainer.limit_train_batches: 3"),
        (["--ckpt_path=none"], 2, "no checkpoint there"),
    ],
)
def test_a_mistake_is_one_panel(fit, here, capsys, options, code, words):
    assert fit(*options) == code
    error = capsys.readouterr().err
    flat = " ".join(error.replace("│", " ").split())
    assert words in flat
    assert "usage:" not in error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 14


def test_no_run_is_written_over(fit, capsys):
    assert fit("--run=r") == 0
    assert fit("--run=r") == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["fit"], 2, "--model.spec configs/models/tiny.yaml"),
        (["validate", "--model.spec=x"], 2, "which weights?"),
        (["fit", "--resume=none"], 2, "no checkpoint there"),
    ],
)
def test_incomplete_commands(here, capsys, argv, code, words):
    assert cli.main(argv) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_shows_an_example(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"examples:\n  hybridlm {command} --" in capsys.readouterr().out


def contents(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_refused_resume_changes_nothing(fit, here, spec, capsys):
    """Another spec once took the place of the run's own before the checkpoint was looked at."""
    assert fit("--run=r", "--checkpoint.every=2") == 0
    before = contents(here / "r")
    (here / "wide.yaml").write_text(spec.read_text().replace("d_model: 32", "d_model: 64"))
    assert cli.main(["fit", "--resume=r", "--model.spec=wide.yaml"]) == 2
    assert "d_model: 32 in the checkpoint, 64 here" in capsys.readouterr().err
    assert contents(here / "r") == before
    newest = here / "r" / "checkpoints" / "step-00000004" / "train.ckpt"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert cli.main(["fit", "--resume=r", "--trainer.max_steps=6"]) == 2
    assert "--resume r/checkpoints/step-00000002" in capsys.readouterr().err
    assert {**contents(here / "r"), newest.relative_to(here / "r"): b""} == {
        **before,
        newest.relative_to(here / "r"): b"",
    }
    assert cli.main(["fit", "--resume=r/checkpoints/step-00000002", "--trainer.max_steps=6"]) == 0
    names = {"step-00000004", "step-00000006", "superseded-step-00000004"}
    assert {path.name for path in newest.parents[1].iterdir()} == names


def test_a_finished_run_says_that_it_is(fit, here, capsys):
    assert fit("--run=r") == 0
    assert cli.main(["fit", "--resume=r"]) == 2
    assert "stands at step 4 already; raise --trainer.max_steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: {lrr: 3}", "unknown key 'model.lrr' in a config. Did you mean '--model.lr'?"),
        (b"model: {lr: 3.0}\nmodel: {lr: 2.0}", "c.yaml:2:1"),
        (b"a: &a [1]\nb: *a", "c.yaml:1"),
        (b"\xff\x00", "c.yaml: not UTF-8 text (byte 0)"),
        (b"", "c.yaml:1:1: empty"),
    ],
)
def test_configs_are_read_strictly(fit, here, capsys, content, words):
    (here / "c.yaml").write_bytes(content)
    assert fit("--config=c.yaml") == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_shipped_names_hold_from_anywhere(fit, here):
    quick = ["--config", "quickstart/stdlib", "--model.seed=0", "--data.seed=0"]
    assert fit(*quick, "--model.spec=attention", "--trainer.max_steps=1") == 0
    assert (here / "runs" / "attention" / "0" / "model.yaml").read_bytes() == config_path(
        "models/attention"
    ).read_bytes()


def test_ctrl_c_outside_the_steps(fit, here, monkeypatch, capsys):
    def press(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(TextData, "setup", press)
        assert fit("--run=r") == 130
    assert "│ stopped by Ctrl-C │" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(cli.pl.Trainer, "validate", press)
        assert fit("--run=r", "--trainer.val_check_interval=3") == 130
    assert "saved up to step-00000004" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_does_not_end_the_run(here, spec, texts):
    options = [f"--model.spec={spec}", f"--data.path={texts}", *SMALL, "--run=r", "--trainer.max_steps=9"]
    words = ["fit", *besides(QUICK, options), *options]
    reads, writes = os.pipe()
    os.close(reads)
    environment = {**os.environ, "PYTHONPATH": str(config_path("models/tiny").parents[2])}
    done = subprocess.run([sys.executable, "-m", "hybridlm", *words], stdout=writes, env=environment, check=False)
    assert done.returncode == 0
    assert (here / "r" / "checkpoints" / "step-00000009").is_dir()


def test_two_processes_do_not_share_a_folder(fit, here, capsys):
    """The second is refused although the first has saved nothing yet."""
    with cli._alone_in(here):
        assert fit(f"--run={here}") == 2
    assert "another process trains there now" in capsys.readouterr().err
    assert fit(f"--run={here}") == 0
