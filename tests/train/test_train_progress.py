"""The bar on a terminal, lines elsewhere, and a picture that survives a resume."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hybridlm.train.console import digits
from hybridlm.train.progress import LossCurve, TrainingBar, loss_png


def shown(make_run, terminal, **settings):
    out = io.StringIO()
    run = make_run(**settings)
    bar = next(c for c in run.trainer.callbacks if isinstance(c, TrainingBar))
    bar.every = 4
    bar._console = Console(file=out, force_terminal=terminal, width=150)
    run.fit()
    return out.getvalue()


def test_lines_where_there_is_no_terminal(make_run):
    lines = shown(make_run, False, max_steps=8, accumulate_grad_batches=2, val_check_interval=8).splitlines()
    steps = [line for line in lines if "loss" in line and "val" not in line]
    assert [line.split()[1] for line in steps] == ["4/8", "8/8"]
    assert "bits/byte" in steps[1]
    assert "tok/s" in steps[1]
    assert [line.split()[1] for line in lines if "val_bpb" in line] == ["4/8", "8/8"]
    assert "\x1b" not in "".join(lines)


def test_a_bar_on_a_terminal(make_run):
    text = shown(make_run, True, max_steps=8)
    assert "training" in text
    assert "validating" in text
    assert "8/8" in text
    assert "val_bpb" in text
    assert text.endswith(("\n", "\x1b[2K", "\x1b[?25h"))  # the cursor is back


def test_the_curve_goes_on_after_a_resume(make_run):
    make_run(every=10).fit()
    resumed = make_run()
    resumed.fit(resumed.folder / "checkpoints" / "step-00000010")
    curve = next(c for c in resumed.trainer.callbacks if isinstance(c, LossCurve))
    assert [step for step, _ in curve._train] == list(range(1, 21))
    assert [step for step, _ in curve._val] == [5, 15, 20]  # the checkpoint at 10 was written before its validation
    assert (resumed.folder / "loss.png").read_bytes() == loss_png(curve._train, curve._val)


def test_points_are_the_mean_loss_of_a_step(make_run):
    run = make_run(max_steps=1, accumulate_grad_batches=4)
    run.fit()
    curve = next(c for c in run.trainer.callbacks if isinstance(c, LossCurve))
    assert curve._train[0][1] == pytest.approx(5.55, abs=1)  # about log 256, not a quarter of it


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.8, "1,234,568"), (0.00012346, "0.0001235"), (3.14159, "3.142"), (0.0, "0")]
)
def test_digits(value, text):
    assert digits(value) == text
