"""Executors: the same packs give the same numbers wherever they are worked off; what dies is told."""

import importlib.util
import os
import signal
import time

import pytest

from hybridlm.ablate.clusters import Slurm
from hybridlm.ablate.executor import Here
from hybridlm.ablate.executors import executor_of
from hybridlm.ablate.job import LOG, Settings, pack_folder
from hybridlm.ablate.results import load
from hybridlm.ablate.run import packs_of, run
from hybridlm.ablate.workers import Local
from hybridlm.errors import SpecError, UnsupportedError
from tests.ablate.subjects import small_study
from tests.ablate.test_run import found

STUDY = small_study(steps=8, seeds=1)


def executor(name, folder, cores=None):
    return executor_of(name, folder, Settings(), lambda: False, cores)


@pytest.mark.deep
def test_processes_find_what_a_plain_call_finds(tmp_path):
    """Spawned processes, whose output is in logs."""
    study = small_study({"hybrid": {}, "pure": {"pattern": "MM"}}, steps=8, seeds=1, lr=(1e-3,), tests=[])
    assert run(study, tmp_path / "here", "here").done == 2
    assert run(study, tmp_path / "local", "local:2").done == 2
    assert found(tmp_path / "local", study) == found(tmp_path / "here", study)
    logs = [pack_folder(tmp_path / "local", pack.key) / LOG for pack in packs_of(study.runs(), "seed")]
    assert all(log.is_file() for log in logs)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["slurm:cluster=local,cpus_per_task=1", "ray"])
def test_every_executor_finds_the_same(tmp_path, name):
    for package in ("submitit", "ray"):
        if name.startswith({"submitit": "slurm", "ray": "ray"}[package]) and not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    assert run(STUDY, tmp_path / "here", "here").done == 4
    assert run(STUDY, tmp_path / "there", name).done == 4
    assert found(tmp_path / "there") == found(tmp_path / "here")


@pytest.mark.deep
def test_a_process_that_dies_takes_its_pack_down_and_no_other(tmp_path):
    packs = packs_of(STUDY.runs(), "seed")
    works = executor("local:1", tmp_path)
    works.start(packs[0])
    while not (pack_folder(tmp_path, packs[0].key) / LOG).exists():
        time.sleep(0.05)
    os.kill(works._workers[0].process.pid, signal.SIGKILL)
    ended = []
    while not ended:
        ended = works.finished()
    ((pack, outcome),) = ended
    assert pack == packs[0]
    assert outcome.ended == "failed"
    assert "SIGKILL; is there enough memory?" in outcome.error
    assert "SIGKILL" in next(one.why for one in load(STUDY, tmp_path).missing if one.arm == pack.arm)
    works.start(packs[1])
    while not ended or ended[0][0] != packs[1]:
        ended = works.finished()
    assert ended[0][1].ended == "done"
    works.close()


@pytest.mark.deep
@pytest.mark.parametrize("how", ["stop", "close"])
def test_processes_that_are_told_to_stop_save(tmp_path, how):
    """A second Ctrl-C closes them at once: nothing goes on behind it."""
    study = small_study(steps=40_000, seeds=1, eval_every=40_000)
    pack = packs_of(study.runs(), "seed")[0]
    works = executor("local:1", tmp_path)
    works.start(pack)
    while not (pack_folder(tmp_path, pack.key) / "progress.json").exists():
        time.sleep(0.05)
    began, (worker,) = time.monotonic(), works._workers
    process = worker.process
    getattr(works, how)()
    assert not process.is_alive()
    assert time.monotonic() - began < 30
    assert len(list(pack_folder(tmp_path, pack.key).glob("checkpoints/step-*"))) == 1


@pytest.mark.deep
def test_processes_end_when_who_started_them_is_killed(tmp_path):
    study = small_study(steps=4000, seeds=1, eval_every=4000)
    pack = packs_of(study.runs(), "seed")[0]
    pid = os.fork()
    if pid == 0:
        try:
            executor("local:1", tmp_path).start(pack)
            time.sleep(600)
        finally:
            os._exit(1)
    note = pack_folder(tmp_path, pack.key) / "progress.json"
    while not note.exists():
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    began = time.monotonic()
    while not list(pack_folder(tmp_path, pack.key).glob("checkpoints/step-*")):
        assert time.monotonic() - began < 60, "it goes on without anybody who waits for it"
        time.sleep(0.05)


def test_names_choose(tmp_path):
    assert isinstance(executor("here", tmp_path), Here)
    assert executor("local:3", tmp_path).slots == 3
    assert executor("local", tmp_path).slots == len(os.sched_getaffinity(0))
    assert executor("local", tmp_path, cores=1).slots == 1
    assert isinstance(executor("local", tmp_path), Local)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("locl", "Did you mean 'local'"),
        ("local:x", "a number of processes from 1 to 1024"),
        ("local:0", "a number of processes"),
        ("local:-1", "a number of processes"),
        ("local:²", "a number of processes"),
        ("slurm:time", "'time' is no KEY=VALUE"),
        ("", "it must be one of"),
        ("here:2", "it must be one of"),
    ],
)
def test_what_is_no_executor_is_told(tmp_path, name, said):
    with pytest.raises(SpecError, match=said):
        executor(name, tmp_path)


def test_no_gpu_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UnsupportedError, match="torch sees no GPU"):
        executor("gpu", tmp_path)


def test_every_gpu_has_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    works = executor("gpu", tmp_path)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in works._workers] == ["4", "6", "7"]
    assert (works.together, works.settings.device) == ("arm", "cuda")


@pytest.mark.parametrize(("name", "module", "extra"), [("slurm", "submitit", "slurm"), ("ray", "ray", "ray")])
def test_a_missing_package_is_told(tmp_path, monkeypatch, name, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UnsupportedError, match=rf"pip install 'hybridlm\[{extra}\]'"):
        executor(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("slurm", r'executor: slurm: .*"srun".*; slurm:cluster=local runs the jobs here'),
        ("slurm:cluster=slrm", "executor: slurm: .*slrm"),
        ("slurm:cluster=local,memory=3", "executor: slurm: Parameter 'memory'"),
        ("slurm:cluster=local,timeout_min=long", 'executor: slurm: Parameter "timeout_min" expected type'),
    ],
)
def test_what_submitit_refuses_is_told_in_a_line(tmp_path, monkeypatch, name, said):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun
    with pytest.raises(SpecError, match=said):
        executor(name, tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path, address):
    pytest.importorskip("ray")
    began = time.monotonic()
    with pytest.raises(SpecError, match=f"executor: ray:{address}: no cluster answers there"):
        executor(f"ray:{address}", tmp_path)
    assert time.monotonic() - began < 30  # Ray itself would wait for minutes


def test_jobs_that_stay_here_are_as_many_as_cores(tmp_path):
    pytest.importorskip("submitit")
    assert executor("slurm:cluster=local", tmp_path).slots == len(os.sched_getaffinity(0))


def test_jobs_with_a_gpu_take_whole_arms(tmp_path):
    pytest.importorskip("submitit")
    works = executor("slurm:cluster=debug,gpus_per_node=1,timeout_min=5", tmp_path)
    assert isinstance(works, Slurm)
    assert (works.together, works.settings.device) == ("arm", "cuda")
    assert executor("slurm:cluster=debug", tmp_path).together == "seed"
