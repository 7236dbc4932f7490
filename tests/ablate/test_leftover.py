"""Checkpoints whose results are there go when a study is done; work that has none yet stays, and is told."""

from dataclasses import replace

import pytest
from filelock import FileLock

from hybridlm.ablate.job import ABOUT, Settings, pack_folder
from hybridlm.ablate.results import RESULT, Result, trial_folder
from hybridlm.ablate.run import packs_of, run
from hybridlm.ablate.study import Study
from hybridlm.ablate.training import LitPack
from hybridlm.ablate.trial import run_pack
from tests.ablate.subjects import small_study

OLD = small_study({"hybrid": {}}, steps=4, seeds=1)
NEW = small_study({"hybrid": {}}, steps=4, seeds=1, lr=(2e-3, 4e-3))


def stopped(study, folder, together="seed"):
    """The folder of the study's one pack, which was stopped after a step."""
    (pack,) = packs_of(study.runs(), together)
    assert run_pack(pack, folder, Settings(), stop=lambda: True).ended == "stopped"
    assert list(pack_folder(folder, pack.key).glob("checkpoints/step-*"))
    return pack_folder(folder, pack.key)


def found(study, folder):
    return [replace(Result.read(trial_folder(folder, trial.key)), seconds=0.0) for trial in study.runs()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the old study finds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(OLD, folder, "here")
    return found(OLD, folder)


def test_those_of_another_grid_are_told_and_gone_on_with_when_it_is_changed_back(
    undisturbed, tmp_path, capsys, monkeypatch
):
    place = stopped(OLD, tmp_path)
    assert run(NEW, tmp_path, "here").done == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "kept: checkpoints of what the study no longer has" in said
    assert "hybrid, seeds 0, lr 0.001, 0.004, " in said
    assert list(place.glob("checkpoints/step-*"))
    taken, step = [], LitPack.training_step
    monkeypatch.setattr(LitPack, "training_step", lambda *args: taken.append(args[0]) or step(*args))
    assert run(OLD, tmp_path, "here").done == 2
    assert len(taken) == 3  # of four steps
    assert not list(tmp_path.rglob("checkpoints"))
    assert "kept" not in capsys.readouterr().err
    assert found(OLD, tmp_path) == undisturbed
    assert all((trial_folder(tmp_path, trial.key) / RESULT).is_file() for trial in NEW.runs())


def test_what_is_killed_before_it_cleared_up_goes_without_a_word(tmp_path, capsys):
    """Its results are there: of another packing, say, or of the very last instant."""
    place = stopped(OLD, tmp_path)
    keys = [trial.key for trial in OLD.runs()]
    run(OLD, tmp_path / "other", "here")
    for key in keys:
        trial_folder(tmp_path, key).joinpath(RESULT).write_bytes(
            trial_folder(tmp_path / "other", key).joinpath(RESULT).read_bytes()
        )
    assert run(OLD, tmp_path, "here").done == 2
    assert not (place / "checkpoints").exists()
    assert "kept" not in capsys.readouterr().err


def test_what_another_runner_holds_stays(tmp_path, capsys):
    place = stopped(OLD, tmp_path)
    with FileLock(trial_folder(tmp_path, OLD.runs()[0].key) / ".lock", thread_local=False):
        assert run(NEW, tmp_path, "here").done == 2
    assert list(place.glob("checkpoints/step-*"))
    assert "kept" not in capsys.readouterr().err


def test_a_grid_that_is_widened_again_goes_on_with_its_packs(tmp_path, monkeypatch, capsys):
    """The command begins with the grid of the file, which does not have them."""
    claim = {"name": "it stays", "metric": "loss", "arm": "pure", "at_least": 0.5}
    given = {**small_study(steps=60, lr=(1e-3, 4e-3), seeds=1, tests=[]).source, "claims": [claim]}
    assert run(Study.from_dict(given), tmp_path, "here").done == 4
    wide = packs_of(Study.from_dict({**given, "lr": [1e-3, 4e-3, 1.6e-2]}).runs(), "seed")
    assert run_pack(wide[0], tmp_path, Settings(), stop=lambda: True).ended == "stopped"
    taken, step = [], LitPack.training_step
    monkeypatch.setattr(LitPack, "training_step", lambda *args: taken.append(args[0]) or step(*args))
    assert run(Study.from_dict({**given, "widen": 1}), tmp_path, "here").done == 6
    assert len(taken) == 59 + 60
    assert not list(tmp_path.rglob("checkpoints"))
    assert "kept" not in capsys.readouterr().err


def test_nothing_goes_before_all_is_done(tmp_path, monkeypatch):
    """What crashed may be why the grid was changed."""
    place = stopped(OLD, tmp_path)

    def crash(*_):
        raise ArithmeticError("no")

    with monkeypatch.context() as patch:
        patch.setattr("hybridlm.ablate.training.Members", crash)
        assert run(NEW, tmp_path, "here").failed
    assert list(place.glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    "about", [None, b"", b"[]", b'{"pack": "p", "trials": ["../../x"]}', b'{"trials": [], "pack": "p"}']
)
def test_what_does_not_say_whose_it_is_stays(tmp_path, about):
    place = stopped(OLD, tmp_path)
    (place / ABOUT).unlink() if about is None else (place / ABOUT).write_bytes(about)
    run(NEW, tmp_path, "here")
    assert list(place.glob("checkpoints/step-*"))
    assert not (tmp_path / "trials/../../x").exists()
