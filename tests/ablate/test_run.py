"""A study that is killed, crashed, damaged, stopped and run by two at once comes to the same results, once."""

import errno
import json
import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from filelock import FileLock

from hybridlm.ablate import run as running
from hybridlm.ablate import training
from hybridlm.ablate.job import Pack, Settings, pack_folder
from hybridlm.ablate.parts import Data
from hybridlm.ablate.results import RESULT, Result, load, trial_folder
from hybridlm.ablate.run import packs_of, run
from hybridlm.ablate.trial import run_pack
from hybridlm.errors import DataError, SpecError
from tests.ablate.subjects import small_study

STEPS = 8
STUDY = small_study(steps=STEPS, seeds=1)
MEMBER_STEPS = STEPS * len(STUDY.runs())


def found(folder, study=STUDY):
    """Every result, without the time that it took."""
    results = [Result.read(trial_folder(folder, trial.key)) for trial in study.runs()]
    return [result and replace(result, seconds=0.0) for result in results]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the study finds, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert run(STUDY, folder, "here", save_every=0).done == 4
    return found(folder), time.monotonic() - began


def agree(folder, undisturbed):
    """How many results there are by now; each is the one that is wanted."""
    there = [(one, wanted) for one, wanted in zip(found(folder), undisturbed[0], strict=True) if one is not None]
    assert all(one == wanted for one, wanted in there)
    return len(there)


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """A file to which every step of every member adds a byte, whatever process takes it."""
    file, step = tmp_path / "steps", training.LitPack.training_step
    file.touch()

    def counted(self, batches, batch_idx):
        with open(file, "ab", buffering=0) as out:
            out.write(b"." * sum(self.running))
        return step(self, batches, batch_idx)

    monkeypatch.setattr(training.LitPack, "training_step", counted)
    return file


@contextmanager
def forked(folder, executor="here", save_every=0.0):
    """The study, run by a process of its own; it exits with 0 (done), 3 (stopped) or 4 (failed)."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            ran = run(STUDY, folder, executor, save_every=save_every)
            os._exit(3 if ran.stopped else 4 if ran.failed else 0)
        finally:
            os._exit(5)
    yield pid


def kill_and_restart(folder, instants):
    """Run, kill at each instant, run again; the exit code of the last one, which nobody kills."""
    for seconds in instants:
        with forked(folder) as pid:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with forked(folder) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_twice_it_finds_the_same(undisturbed, tmp_path, steps):
    for taken in (7, 22):  # in the middle of the first pack, and of the second
        with forked(tmp_path / "study") as pid:
            while steps.stat().st_size < taken:
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert kill_and_restart(tmp_path / "study", []) == 0
    assert found(tmp_path / "study") == undisturbed[0]
    assert MEMBER_STEPS <= steps.stat().st_size <= MEMBER_STEPS + 2 * 2 * len(STUDY.lr)  # the steps that were not kept


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_instants_it_finds_the_same(undisturbed, tmp_path, seed, steps):
    wanted, seconds = undisturbed
    draw = random.Random(seed)
    instants = [draw.uniform(0, seconds) for _ in range(draw.randint(1, 4))]
    assert kill_and_restart(tmp_path / "study", instants) == 0
    assert found(tmp_path / "study") == wanted
    assert steps.stat().st_size <= MEMBER_STEPS + len(instants) * 2 * len(STUDY.lr)
    assert not list((tmp_path / "study").rglob("checkpoints/*"))


def test_stopped_while_it_is_measured_it_keeps_what_it_has(undisturbed, tmp_path, steps, monkeypatch):
    """Knock-outs may take as long as the training: one trial's are not lost, and none is measured twice."""
    (pack, *_), measured, result = packs_of(STUDY.runs(), "seed"), [], training.Training._result
    counted = lambda self, module, k, *rest: measured.append(k) or result(self, module, k, *rest)  # noqa: E731
    monkeypatch.setattr(training.Training, "_result", counted)
    outcome = run_pack(pack, tmp_path, Settings(save_every=1e9), stop=lambda: bool(measured))
    assert outcome.ended == "stopped"
    assert agree(tmp_path, undisturbed) == 1
    taken = steps.stat().st_size
    assert run_pack(pack, tmp_path, Settings(save_every=1e9)).ended == "done"
    assert agree(tmp_path, undisturbed) == 2
    assert measured == [0, 1]
    assert steps.stat().st_size == taken


def test_the_folder_of_another_study_is_left_as_it_is(tmp_path):
    run(STUDY, tmp_path / "here", "here")
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*.*") if path.is_file()}
    with pytest.raises(DataError, match=r"here: it holds the study 'small', and this one is 'other'; give another"):
        run(replace(STUDY, name="other"), tmp_path / "here", "here")
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*.*") if path.is_file()} == before
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file; give a folder"):
        run(STUDY, tmp_path / "file", "here")


def test_a_text_that_fills_no_window_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("too short. " * 20)
    text = Data(text=str(tmp_path / "a.txt"), context=64, held_out=5)
    for study in (replace(STUDY, data=text), replace(STUDY, eval=(replace(text, name="other"),))):
        with pytest.raises(DataError, match=r"data\.context: 64 tokens, but the held-out text holds"):
            run(study, tmp_path / "study", "here")
        assert not (tmp_path / "study").exists()


def test_an_executor_that_is_not_there_leaves_no_folder(tmp_path):
    with pytest.raises(SpecError, match="locl"):
        run(STUDY, tmp_path / "study", "locl")
    assert not (tmp_path / "study").exists()


@pytest.mark.deep
def test_stopped_after_every_step_it_finds_the_same(undisturbed, tmp_path):
    for pack in packs_of(STUDY.runs(), "seed"):
        for _ in range(STEPS - 1 + len(pack.trials) - 1):  # and when each but the last one has been measured
            assert run_pack(pack, tmp_path, Settings(save_every=1e9), stop=lambda: True).ended == "stopped"
        assert run_pack(pack, tmp_path, Settings(save_every=1e9), stop=lambda: True).ended == "done"
    assert found(tmp_path) == undisturbed[0]


def test_what_is_finished_is_not_touched(undisturbed, tmp_path, steps):
    run(STUDY, tmp_path / "study", "here")
    files = sorted((tmp_path / "study" / "trials").glob("*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    assert run(STUDY, tmp_path / "study", "here").done == 4
    assert [file.stat().st_mtime_ns for file in files] == before
    assert steps.stat().st_size == MEMBER_STEPS


def test_ctrl_c_saves_and_what_is_left_goes_on(undisturbed, tmp_path, steps):
    with forked(tmp_path / "study", save_every=1e9) as pid:
        while steps.stat().st_size < 2:
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert not all(found(tmp_path / "study"))
    with forked(tmp_path / "study", save_every=1e9) as pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert found(tmp_path / "study") == undisturbed[0]
    assert steps.stat().st_size == MEMBER_STEPS


def test_two_runners_share_the_work(undisturbed, tmp_path, steps):
    with forked(tmp_path / "study") as one, forked(tmp_path / "study") as two:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (one, two)]
    assert codes == [0, 0]
    assert found(tmp_path / "study") == undisturbed[0]
    assert steps.stat().st_size == MEMBER_STEPS


def test_a_crash_does_not_stop_the_rest(undisturbed, tmp_path, monkeypatch, capsys):
    members = training.Members

    def crash(spec, *rest):
        if spec.pattern == "MM":
            raise ArithmeticError("no such thing\nas this")
        return members(spec, *rest)

    monkeypatch.setattr(training, "Members", crash)
    ran = run(STUDY, tmp_path, "here")
    assert ran.done == 2
    assert ran.failed == [("pure, seeds 0, lr 0.001, 0.004", "ArithmeticError: no such thing")]
    assert "failed: pure, seeds 0" in capsys.readouterr().err
    (place,) = {trial_folder(tmp_path, one.key) for one in STUDY.runs() if one.arm.name == "pure" and one.lr == 1e-3}
    assert "as this" in json.loads((place / "failed.json").read_text())["traceback"]
    assert {one.why for one in load(STUDY, tmp_path).missing} == {"it crashed: ArithmeticError: no such thing"}
    monkeypatch.undo()
    assert not run(STUDY, tmp_path, "here").failed  # tried again
    assert found(tmp_path) == undisturbed[0]
    assert not list(tmp_path.rglob("failed.json"))


def test_what_another_runner_holds_is_asked_for_again(undisturbed, tmp_path, monkeypatch):
    """It may be killed: who waits then does its work."""
    monkeypatch.setattr(running, "RETRY", 0.1)
    place = trial_folder(tmp_path, STUDY.runs()[0].key)
    place.mkdir(parents=True)
    other = FileLock(place / ".lock", thread_local=False)
    other.acquire()
    freed = []
    threading.Timer(4.0, lambda: (freed.append(agree(tmp_path, undisturbed)), other.release())).start()
    assert run(STUDY, tmp_path, "here").done == 4
    assert freed == [2]
    assert found(tmp_path) == undisturbed[0]


def test_a_damaged_result_is_told_and_found_anew(undisturbed, tmp_path, capsys):
    run(STUDY, tmp_path, "here")
    path = trial_folder(tmp_path, STUDY.runs()[1].key) / RESULT
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    run(STUDY, tmp_path, "here")
    assert "damaged: " in capsys.readouterr().err
    assert path.with_name("result.json.damaged").exists()
    assert found(tmp_path) == undisturbed[0]


@pytest.mark.parametrize(
    "harm", ["flip", *(pytest.param(harm, marks=pytest.mark.deep) for harm in ("cut", "remove", "other"))]
)
def test_a_damaged_checkpoint_is_told_and_the_pack_runs_anew(undisturbed, tmp_path, harm):
    pack = packs_of(STUDY.runs(), "seed")[0]
    assert run_pack(pack, tmp_path, Settings(), stop=lambda: True).ended == "stopped"
    (saved,) = pack_folder(tmp_path, pack.key).glob("checkpoints/step-*/train.ckpt")
    blob = bytearray(saved.read_bytes())
    blob[len(blob) // 2] ^= 1
    if harm == "remove":
        saved.unlink()
    else:
        saved.write_bytes({"flip": blob, "cut": blob[:-100], "other": b"not a checkpoint"}[harm])
    outcome = run_pack(pack, tmp_path, Settings())
    assert outcome.ended == "done"
    assert "must run anew" in outcome.told[0]
    assert agree(tmp_path, undisturbed) == 2


def test_a_result_that_is_there_is_kept_when_the_rest_goes_on_from_a_checkpoint(
    undisturbed, tmp_path, steps, monkeypatch
):
    """Killed between the results of two members: nothing is trained again, and the first result stays."""
    (pack, *_) = packs_of(STUDY.runs(), "seed")
    write, written = Result.write, []

    def once(self, folder):
        if written:
            raise KeyboardInterrupt
        written.append(self.key)
        write(self, folder)

    monkeypatch.setattr(Result, "write", once)
    with pytest.raises(KeyboardInterrupt):
        run_pack(pack, tmp_path, Settings())
    monkeypatch.setattr(Result, "write", write)
    taken = steps.stat().st_size
    assert run_pack(pack, tmp_path, Settings()).ended == "done"
    assert steps.stat().st_size == taken
    assert agree(tmp_path, undisturbed) == 2


@pytest.mark.parametrize("writes", [9, *(pytest.param(n, marks=pytest.mark.deep) for n in (0, 1, 2, 3, 6, 12, 15, 20))])
def test_a_full_disk_leaves_what_was_there_and_the_next_run_goes_on(undisturbed, tmp_path, monkeypatch, writes):
    fsync, left = os.fsync, [writes]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(handle)

    pack = packs_of(STUDY.runs(), "seed")[0]
    monkeypatch.setattr(os, "fsync", full)
    outcome = run_pack(pack, tmp_path, Settings(save_every=0))
    assert outcome.ended == "failed"
    assert "No space left" in outcome.error
    monkeypatch.undo()
    assert run_pack(pack, tmp_path, Settings(save_every=0)) == replace(outcome, ended="done", error="")
    assert agree(tmp_path, undisturbed) == 2
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".step", ".result", ".failed"))]


def test_an_arm_costlier_than_others_goes_first():
    packs = packs_of(STUDY.runs(), "seed")
    assert [pack.arm for pack in packs] == ["pure", "hybrid"]
    assert len(packs_of(small_study(seeds=3).runs(), "seed")) == 6
    assert [len(pack.trials) for pack in packs_of(small_study(seeds=3).runs(), "arm")] == [6, 6]


def test_numbers_do_not_depend_on_who_shares_the_pack(undisturbed, tmp_path):
    for trial in STUDY.runs()[:2]:
        run_pack(Pack((trial,)), tmp_path, Settings())
    assert found(tmp_path)[:2] == undisturbed[0][:2]
