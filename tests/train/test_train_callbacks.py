"""A run is never lost: it resumes bit for bit, stops before a bad step, and survives Ctrl-C and a full disk."""

from __future__ import annotations

import errno
import math
import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import hybridlm as hl
from hybridlm.errors import CheckpointError
from hybridlm.train import checkpoint as checkpoint_module
from hybridlm.train.callbacks import Interrupted, NonFiniteError, RunCheckpoint, UnsavedError
from hybridlm.train.checkpoint import SafeCheckpointIO, checkpoint_folder


class At(Callback):
    """Calls action(trainer, module) once, when the first training batch of a step starts."""

    def __init__(self, step, action):
        self.step, self.action, self.done = step, action, False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and not self.done:
            self.done = True
            self.action(trainer, pl_module)


def checkpoints(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 7}, {"accumulate_grad_batches": 3}])
def test_a_resumed_run_is_the_run(make_run, settings):
    """20 steps equal 10 steps, all new objects, and 10 more: every weight, bit for bit, dropout included."""
    torch.manual_seed(5)
    whole = make_run("whole", **settings).fit()
    torch.manual_seed(5)
    half = make_run("half", every=10, callbacks=[At(12, lambda t, m: os.kill(os.getpid(), signal.SIGINT))], **settings)
    with pytest.raises(Interrupted):
        half.fit()
    first = half.folder / "checkpoints" / "step-00000010"
    torch.manual_seed(99)  # whatever the new process has drawn before
    resumed = make_run("half", **settings)
    assert equal(resumed.fit(first), whole)
    late = make_run("half", **settings)
    assert equal(late.fit(half.folder / "checkpoints" / "superseded-step-00000013"), whole)


def test_dropout_makes_the_resume_test_mean_something(make_run):
    """Without its random state a run with dropout resumes to other weights."""
    torch.manual_seed(5)
    whole = make_run("whole", keep=3).fit()
    torch.manual_seed(5)
    assert equal(make_run("half").fit(), whole)
    torch.manual_seed(99)
    resumed = make_run("half")
    resumed.trainer.callbacks = [c for c in resumed.trainer.callbacks if type(c).__name__ != "RandomState"]
    assert not equal(resumed.fit(resumed.folder / "checkpoints" / "step-00000010"), whole)


def test_newest_checkpoints_stay_and_the_best_model_loads(make_run):
    run = make_run(every=4, keep=2)
    run.fit()
    assert checkpoints(run) == ["step-00000016", "step-00000020"]
    model = hl.load(run.folder)
    assert run.checkpoint.best_step > 0
    if run.checkpoint.best_step == 20:
        assert equal(model.state_dict(), run.module.model.state_dict())
    assert model.spec == run.module.model.spec


def test_without_validation_the_last_weights_are_the_model(make_run):
    run = make_run(limit_val_batches=0, max_steps=7)
    run.fit()
    assert run.checkpoint.best == math.inf
    assert equal(hl.load(run.folder).state_dict(), run.module.model.state_dict())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_saves(make_run, number, code, capfd):
    before = signal.getsignal(number)
    run = make_run(callbacks=[At(6, lambda t, m: os.kill(os.getpid(), number))])
    with pytest.raises(Interrupted, match="hybridlm fit --resume") as stopped:
        run.fit()
    assert stopped.value.exit_code == code
    assert checkpoints(run) == ["step-00000007"]
    assert hl.load(run.folder)
    assert signal.getsignal(number) is before
    assert "finishing this step and saving" in capfd.readouterr().err


def test_a_signal_waits_for_accumulated_gradients(make_run):
    """Inside a group of micro-batches there are gradients that a checkpoint does not hold."""

    class Second(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 13:
                os.kill(os.getpid(), signal.SIGINT)

    run = make_run(accumulate_grad_batches=4, callbacks=[Second()])
    with pytest.raises(Interrupted):
        run.fit()
    assert checkpoints(run) == ["step-00000004"]
    state = SafeCheckpointIO().load_checkpoint(run.folder / "checkpoints" / "step-00000004")
    assert state["TextData"] == {"samples": 4 * 4 * 2}


def test_a_second_ctrl_c_stops_at_once(make_run):
    def twice(trainer, module):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = make_run(callbacks=[At(6, twice)])
    with pytest.raises(Interrupted, match="stopped by Ctrl-C; nothing was saved"):
        run.fit()
    assert not (run.folder / "checkpoints").exists()
    run = make_run(every=4, callbacks=[At(6, twice)])
    with pytest.raises(Interrupted, match=r"saved up to step-00000004\. Resume with"):
        run.fit()
    assert checkpoints(run) == ["step-00000004"]


def poison(trainer, module):
    with torch.no_grad():
        module.model.blocks[1].mixer.o_proj.weight[0, 0] = float("nan")


def test_a_non_finite_loss_stops_before_the_step_and_names_the_layer(make_run):
    run = make_run(every=5, callbacks=[At(7, poison)])
    with pytest.raises(NonFiniteError) as error:
        run.fit()
    message = str(error.value)
    assert message.startswith("step 8: the loss is nan")
    assert "First layer with a non-finite activation: blocks.1.mixer.o_proj (Linear)" in message
    assert "Non-finite parameters: blocks.1.mixer.o_proj.weight" in message
    assert "step-00000005" in message
    assert run.trainer.global_step == 7
    assert checkpoints(run) == ["step-00000005"]
    weights = SafeCheckpointIO().load_checkpoint(checkpoint_folder(run.folder))["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_an_overflow_names_the_layer_where_it_began(make_run):
    def blow_up(trainer, module):
        with torch.no_grad():
            module.model.blocks[0].mlp.down_proj.weight.fill_(3e38)

    run = make_run(callbacks=[At(3, blow_up)])
    with pytest.raises(NonFiniteError, match=r"non-finite activation: blocks\.0\.mlp\.down_proj \(Linear\)\.\n"):
        run.fit()


def test_a_non_finite_gradient_stops_before_the_step(make_run):
    def infinite(gradient):
        return gradient * float("inf")

    def break_gradient(trainer, module):
        module.model.final_norm.weight.register_hook(infinite)

    run = make_run(callbacks=[At(3, break_gradient)])
    with pytest.raises(NonFiniteError, match=r"gradient is not: model\.final_norm\.weight"):
        run.fit()
    assert all(p.isfinite().all() for p in run.module.parameters())


def test_a_full_disk_says_so_and_leaves_the_previous_checkpoint(make_run, monkeypatch):
    def fill(trainer, module):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint_module, "_save", full)

    run = make_run(every=5, callbacks=[At(8, fill)])
    with pytest.raises(CheckpointError, match=r"the disk is full; the previous checkpoint is intact: .*step-00000005"):
        run.fit()
    assert checkpoints(run) == ["step-00000005"]
    assert SafeCheckpointIO().load_checkpoint(checkpoint_folder(run.folder))["global_step"] == 5


def test_a_full_disk_under_the_exported_weights(make_run, monkeypatch):
    """The exported model stays, and so do the checkpoints."""
    run = make_run(every=5, max_steps=5)
    weights = run.fit()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hybridlm.shards.ShardWriter.write", full)
    longer = make_run(every=5, max_steps=20)
    with pytest.raises(UnsavedError, match=r"model: the disk is full; the previous checkpoint is intact: .*step-0"):
        longer.fit(run.folder / "checkpoints" / "step-00000005")
    assert equal(hl.load(run.folder).state_dict(), {k.removeprefix("model."): v for k, v in weights.items()})


def test_a_damaged_checkpoint_does_not_start_a_run(make_run):
    run = make_run(every=5, max_steps=5)
    run.fit()
    file = run.folder / "checkpoints" / "step-00000005" / "train.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"train\.ckpt: its sha256"):
        make_run().fit(file.parent)


@pytest.mark.parametrize("settings", [{"every": 0}, {"keep": 0}])
def test_settings_of_checkpoints(settings):
    with pytest.raises(CheckpointError, match="must be 1 or more"):
        RunCheckpoint(**settings)


def test_measuring_exports_nothing(make_run):
    """`hybridlm validate` has the same callbacks; it must not take what it measures for the run's best model."""
    run = make_run()
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert "val_loss" in run.trainer.callback_metrics
    assert not (run.folder / "model").exists()
