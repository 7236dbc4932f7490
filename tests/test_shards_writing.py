"""Writing weights: as announced or not at all, on a full disk, killed half-way, in the memory of one tensor."""

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from hybridlm.errors import CheckpointError, SpecError
from hybridlm.files import STAGING
from hybridlm.shards import WEIGHTS, Entry, ShardReader, ShardWriter, entries_of, plan_shards, write_shards

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(5, dtype=torch.int8), "c": torch.ones(2).bfloat16()}
ENTRIES = entries_of(TENSORS.items())


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ([], "never written: b, c, a"),
        ([("b", TENSORS["b"])] * 2, "b: written twice"),
        ([("B", TENSORS["b"])], "B: not announced. Did you mean 'b'"),
        ([("b", TENSORS["b"].t())], r"float32 \(3, 2\) instead of the torch.float32 \(2, 3\)"),
        ([("b", TENSORS["b"].double())], "float64"),
    ],
)
def test_what_was_announced_is_what_is_written_or_nothing_is(tmp_path, given, fault):
    with pytest.raises(CheckpointError, match=fault):
        write_shards(tmp_path / "new", ENTRIES, given)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 3, None])
def test_a_name_that_a_file_cannot_hold_is_refused(name):
    with pytest.raises(CheckpointError, match="cannot be the name of a tensor"):
        plan_shards([Entry(name, torch.float32, (1,))])


def test_one_name_for_two_tensors_is_refused():
    with pytest.raises(CheckpointError, match=r"^a, c: given twice"):
        plan_shards([Entry(name, torch.float32, (1,)) for name in "abcca"])


@pytest.mark.parametrize("limit", [0, 2.5, "5GB", True])
def test_a_limit_is_a_whole_number_of_bytes(limit):
    with pytest.raises(SpecError, match="max_bytes"):
        plan_shards(ENTRIES, limit)


def test_tensors_may_come_in_any_order(tmp_path):
    for limit in (10**9, 1):
        with ShardWriter(tmp_path, ENTRIES, max_bytes=limit) as writer:
            for name in ("c", "b", "a"):
                writer.write(name, TENSORS[name])
            assert [path.name for path in tmp_path.glob("model*") if limit > 1] == []
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in ShardReader(tmp_path))


@contextmanager
def full_disk(size):
    """No file grows over `size` bytes: the system's own error, in the midst of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10, 200, 5000, 39_000])
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path, size, there):
    folder = tmp_path / "new"
    if there:
        write_shards(folder, ENTRIES, TENSORS.items())
    large = [("x", torch.ones(10_000))]
    with pytest.raises(OSError, match="too large"), full_disk(size):
        write_shards(folder, entries_of(large), large)
    if there:
        assert [path.name for path in folder.iterdir()] == [WEIGHTS]
        assert set(ShardReader(folder).entries) == set(TENSORS)
    else:
        assert not folder.exists()


WAITS = """
import sys, torch
from hybridlm.shards import Entry, ShardWriter
with ShardWriter(sys.argv[1], [Entry(name, torch.float32, (1000,)) for name in "abc"], max_bytes=4000) as writer:
    writer.write("a", torch.ones(1000))
    print("half-way", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_to_read_and_the_next_one_cleans_up(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "half-way\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert all(path.name.startswith(STAGING) for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"no model.safetensors"):
        ShardReader(tmp_path)
    write_shards(tmp_path, ENTRIES, TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


COPIES = """
import sys, torch
from hybridlm.shards import Entry, ShardReader, ShardWriter

source, target, count, size = *sys.argv[1:3], *map(int, sys.argv[3:])


def peak():  # not getrusage: its figure begins with that of the process which started this one
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def forget():
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is held now


entries = [Entry(str(k), torch.bfloat16, (size // 2,)) for k in range(count)]
limit = 4 * size
with ShardWriter(source, entries, max_bytes=limit) as writer:
    for k in range(count):
        writer.write(str(k), torch.full((size // 2,), k, dtype=torch.bfloat16))
forget()
before = peak()
reader = ShardReader(source)
with ShardWriter(target, reader.entries.values(), max_bytes=limit) as writer:
    for name, tensor in reader:
        writer.write(name, tensor)
streamed = peak() - before
held = [tensor.clone() for _, tensor in ShardReader(target)]
assert all(bool((tensor == int(entry.name)).all()) for tensor, entry in zip(held, reader.entries.values()))
print(streamed, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("count", "size", "room"),
    [(12, 8 << 20, 16 << 20), pytest.param(32, 64 << 20, 500 << 20, marks=pytest.mark.deep)],
    ids=["96 MB", "2 GB"],
)
def test_a_checkpoint_is_copied_in_the_memory_of_one_shard(tmp_path, count, size, room):
    """The same script then holds all of it, which shows that what it measures is there to be seen."""
    arguments = [str(tmp_path / "source"), str(tmp_path / "target"), str(count), str(size)]
    done = subprocess.run([sys.executable, "-c", COPIES, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    streamed, held = map(int, done.stdout.split())
    assert streamed < 4 * size + room
    assert held > 0.9 * count * size
