"""The command without running: tables that say everything, a time that is measured, and a budget that is kept."""

import copy
import time

import pytest

from hybridlm.ablate import predict as timing
from hybridlm.ablate.dry_run import drawn, show, summary
from hybridlm.ablate.predict import Prediction, predict, readable_time, require_budget
from hybridlm.ablate.study import Study
from hybridlm.cli import main
from hybridlm.compose.cost import model_cost
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.compose.strict_yaml import dump
from hybridlm.errors import SpecError

SMALL = {
    "name": "small",
    "question": "Is it?",
    "baseline": {"d_model": 32, "vocab_size": 32, "pattern": "M4"},
    "axes": {"ratio": {"attention": [0, 1]}, "where": {"placement": ["middle", "front"]}},
    "match": {"to": "params", "of": "ratio=1,where=middle"},
    "data": {"task": "mqar", "params": {"vocab_size": 32, "length": 16, "pairs": 2}, "held_out": 16},
    "train": {"steps": 10, "batch_size": 4, "eval_every": 5},
    "lr": [1e-3],
    "seeds": 3,
    "claims": [{"name": "one is enough", "metric": "accuracy", "arm": "ratio=1,where=middle", "at_least": 0.9}],
}


def small(**changes) -> Study:
    return Study.from_dict({**copy.deepcopy(SMALL), **changes})


def test_the_tables_say_arms_costs_runs_claims_and_warnings(capsys):
    study = small()
    show(study, Prediction({arm.name: 60.0 for arm in study.arms}, 300.0, "so it was said"))
    out = capsys.readouterr().out
    for text in [
        "small: Is it?",
        "9 runs: 4 arms, 3 seeds, learning rates 0.001",
        "match: params by mlp",
        "time: at most 5 min: so it was said",
        "as ratio=0,where=middle",
        "one is enough: accuracy of ratio=1,where=middle at least 0.9 in all seeds",
        "warning lr: 1 learning rates",
        "attention at layer 0",
        "■ mamba2  ■ attention",
    ]:
        assert text in out, text
    for arm in study.arms:
        assert f"{arm.cost.params:,}" in out
        assert f"{arm.residual:+.2%}" in out
    assert " MMAM " in out


def test_a_stack_is_drawn_layer_by_layer():
    spec = ModelSpec(
        d_model=64,
        vocab_size=16,
        pattern="M2 <M|A> - [ssm]",
        blocks={"M": {"mixer": "mamba2"}, "A": {"mixer": "attention"}, "ssm": {"mixer": "s4"}},
    )
    bare = __import__("rich.text", fromlist=["Text"]).Text.from_markup(drawn(plan(spec).layers)).plain
    assert bare == "MMM|A-s"


def test_steps_are_timed_for_every_shape_and_not_for_every_arm(monkeypatch):
    timed = []

    def time_arm(study, arm):
        timed.append(arm.name)
        return timing.Timing(step=0.1, draw=0.01, read=0.03)

    monkeypatch.setattr(timing, "time_arm", time_arm)
    predicted = predict(small(match=None, budget={"minutes": 1, "cores": 1}))
    assert len(timed) == 2  # with attention and without, wherever it stands
    assert predicted.arms["ratio=0,where=front"] == 0  # it shares the runs of another
    knocked = 1 + (3 + 2 * (4 + 3 + 2 + 1)) / 4  # all means; three of four layers to be kept; each and those above it
    readings = 16 * (2 + knocked) * 0.03 / 4
    each = 3 * (10 * (0.1 + 0.01) + readings)
    assert predicted.arms["ratio=1,where=front"] == pytest.approx(each)
    assert predicted.seconds == pytest.approx(3 * each)
    assert predict(small(match=None, budget={"minutes": 1, "cores": 3})).seconds == pytest.approx(each)


def test_a_time_is_measured():
    study = small()
    found = timing.time_arm(study, study.arms[0])
    assert 0 < found.read < found.step
    assert found.draw > 0


def test_a_large_step_is_timed_in_part(monkeypatch):
    study = small(train={"steps": 10, "batch_size": 64, "eval_every": 5})
    monkeypatch.setattr(timing, "MOST", 1.0)
    rows = []
    monkeypatch.setattr(timing, "_batch", lambda data, spec, size: rows.append(size) or batch(data, spec, size))
    found = timing.time_arm(study, study.arms[0])
    assert rows == [1]
    assert found.step > 0


def test_of_a_long_sample_the_beginning_is_timed(monkeypatch):
    """A million tokens would take attention hours; its time grows with the FLOPs, and so with their square."""
    params = {"vocab_size": 32, "length": 2**17}
    study = small(match=None, data={"task": "induction_heads", "params": params}, train={"steps": 2, "eval_every": 1})
    arm, seen, took = study.arm("ratio=1,where=front"), [], []
    monkeypatch.setattr(timing, "_fastest", lambda work: took.append(1) or work() or 1.0)
    monkeypatch.setattr(timing, "_marks", lambda batch: seen.append(batch["ids"].shape) or {})
    began = time.monotonic()
    found = timing.time_arm(study, arm)
    assert time.monotonic() - began < 60
    (shape,) = set(seen)
    assert shape[1] < 2**17
    whole, part = (model_cost(arm.spec).training(t).total * t for t in (2**17, shape[1]))
    assert part <= timing.MOST_OF_ONE
    assert found.step == pytest.approx(study.train.batch_size * whole / part)


batch = timing._batch


def test_a_gpu_s_time_follows_from_flops_and_launches(monkeypatch):
    monkeypatch.setattr(timing, "time_arm", None)  # nothing is timed
    study = small(budget={"gpu_hours": 1})
    few = predict(study).arms["ratio=1,where=front"]
    readings = 2 + 1 + (3 + 2 * (4 + 3 + 2 + 1)) / 4  # on the way; for all means; for layers kept and without a branch
    each = 10 * 4 * timing.KERNELS + 4 * timing.LAUNCHES * readings  # of 3 seeds: 4 layers, 10 steps
    assert few == pytest.approx(timing.BEGIN + 3 * each)
    large = small(budget={"gpu_hours": 1}, train={"steps": 10, "batch_size": 40_000, "eval_every": 5})
    arm = large.arm("ratio=1,where=front")
    steps = 10 * 3 * 40_000 * 16 * arm.cost.flops_train / timing.GPU_RATE["float32"]
    assert predict(large).arms[arm.name] - few == pytest.approx(steps - 3 * 10 * 4 * timing.KERNELS)


def test_ffts_have_a_rate_of_their_own():
    """S4D's are a few percent of its FLOPs and nearly all of its time."""
    study = small(
        match=None,
        axes={"wide": {"d_model": [32, 64]}},
        claims=[],
        baseline={**SMALL["baseline"], "pattern": "HH", "blocks": {"H": {"mixer": "s4d"}}},
        train={"steps": 1000, "batch_size": 40_000, "eval_every": 500},
        budget={"gpu_hours": 9},
    )
    arm = study.arms[0]
    transforms = 3 * timing.model_cost(arm.spec).forward(16).fft * 40_000 * 3
    assert transforms > 0
    assert predict(study).arms[arm.name] == pytest.approx(timing.BEGIN + 1000 * transforms / timing.FFT_RATE, rel=0.05)


def test_a_gpu_reads_long_samples_in_pieces_and_pays_for_their_attention():
    """A test of 2^20 tokens is 64 pieces a sample; attention to all of them is what takes the time."""
    params = {"vocab_size": 32, "length": 2**20}
    study = small(match=None, eval=[{"name": "long", "task": "induction_heads", "params": params, "held_out": 2}])
    without, with_one = study.arm("ratio=0,where=front"), study.arm("ratio=1,where=front")
    assert timing._reading(without, study.eval[0]) == pytest.approx(2 * 64 * 4 * timing.LAUNCHES)
    assert timing._reading(with_one, study.eval[0]) > 2 * timing._reading(without, study.eval[0])


def test_a_study_over_its_budget_is_refused_with_what_would_fit():
    study = small(budget={"minutes": 1, "cores": 2})
    require_budget(study, Prediction({}, 59.0, "b"))
    with pytest.raises(SpecError, match=r"takes 2 min \(b\), and the budget is 60 s. Lower train.steps to 5, "):
        require_budget(study, Prediction({}, 120.0, "b"))
    with pytest.raises(SpecError, match=r"the budget is 60 s. Take arms, seeds or learning rates out"):
        require_budget(study, Prediction({}, 6000.0, "b"))
    require_budget(small(), Prediction({}, 1e9, "no budget"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (7200, "2.0 h")]
)
def test_times_are_readable(seconds, text):
    assert readable_time(seconds) == text


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(timing, "time_arm", lambda study, arm: timing.Timing(0.1, 0.01, 0.03))


def test_a_dry_run_runs_nothing_and_writes_nothing(fast, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(dump({**SMALL, "budget": {"minutes": 30, "cores": 2}}))
    assert main(["ablate", "s.yaml", "--dry-run"]) == 0
    assert "small: Is it?" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "locl"], "'locl'; it must be one of"),
        (["--executor", "gpu"], "torch sees no GPU here; use local"),
        (["--executor", "slurm:time"], "'time' is no KEY=VALUE"),
        (["--executor", "ray", "--processes", "2"], "processes: 2; it goes with --executor local or gpu, not with ray"),
        (["--executor", "local:2", "--processes", "2"], "not with local:2"),
        (["--processes", "0"], "after the colon comes a number of processes"),
        (["--out", "s.yaml"], "s.yaml is a file; give a folder for the results"),
        (["--out", "other"], "other: it holds the study 'other', and this one is 'small'; give another --out"),
    ],
)
def test_what_could_not_run_is_told_before_anything_is_timed(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "time_arm", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (tmp_path / "s.yaml").write_text(dump({**SMALL, "budget": {"minutes": 30, "cores": 2}}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.yaml").write_text("name: other")
    for more in ([], ["--dry-run"]):
        assert main(["ablate", "s.yaml", *words, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "runs").exists()


def test_over_budget_is_refused_unless_it_is_asked_for(fast, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(dump({**SMALL, "budget": {"minutes": 0.01, "cores": 2}}))
    assert main(["ablate", str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "small: Is it?" in said.out
    assert "budget: the study takes" in said.err
    assert main(["ablate", str(tmp_path / "s.yaml"), "--dry-run", "--over-budget"]) == 0


def test_a_bad_study_is_refused_in_one_message(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(dump({**SMALL, "seeds": 0, "lr": []}))
    assert main(["ablate", str(tmp_path / "s.yaml")]) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said
    assert "seeds: 0 is out of range" in said
    assert "lr: []" in said


def test_a_near_study_is_offered(capsys):
    assert main(["ablate", "recal-rescue"]) == 2
    assert "recall-rescue" in capsys.readouterr().err


def test_tests_and_data_are_told():
    study = small(eval=[{"name": "long", "task": "mqar", "params": {"vocab_size": 32, "length": 32, "pairs": 2}}])
    lines = summary(study, Prediction({}, 1.0, ""))
    assert any(line.startswith("test long: mqar") for line in lines)
