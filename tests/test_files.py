"""Atomic writes and manifests."""

import errno
import os

import pytest

from hybridlm.errors import CheckpointError, DataError
from hybridlm.files import atomic_write, changing, check_target, verify_manifest, write_manifest


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_manifest_names_every_damaged_file_at_once(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    write_manifest(tmp_path, ["a", "b", "c", "d"])
    verify_manifest(tmp_path)
    (tmp_path / "a").write_bytes(b"A" + b"a" * 9)
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "c").unlink()
    with pytest.raises(CheckpointError) as caught:
        verify_manifest(tmp_path)
    message = str(caught.value)
    assert "a: its sha256" in message
    assert "b: 1 bytes instead of 10" in message
    assert "c: missing" in message
    assert "d:" not in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"a": 3}}'])
def test_a_damaged_manifest_is_said_to_be_one(tmp_path, content):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        verify_manifest(tmp_path)


def test_no_manifest_is_no_saved_model(tmp_path):
    with pytest.raises(CheckpointError, match="not a saved model"):
        verify_manifest(tmp_path)


def test_errors_name_the_file_and_not_its_temporary_twin(tmp_path):
    with pytest.raises(OSError, match="none/file") as missing:
        atomic_write(tmp_path / "none" / "file", b"")
    assert missing.value.filename == str(tmp_path / "none" / "file")
    with pytest.raises(OSError, match="directory") as folder:
        atomic_write(tmp_path, b"")
    assert folder.value.filename == str(tmp_path)


def test_a_full_disk_says_of_what(tmp_path):
    with pytest.raises(OSError, match="No space") as full, changing(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert full.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_is_judged_before_the_work(tmp_path):
    check_target("output", tmp_path / "file")
    with pytest.raises(DataError, match=r"output: .* is a folder"):
        check_target("output", tmp_path)
    with pytest.raises(DataError, match=r"output: .*: its folder does not exist"):
        check_target("output", tmp_path / "none" / "file")


def test_what_moves_in_can_be_read_by_whom_the_user_lets(tmp_path):
    before = os.umask(0o027)
    try:
        with changing(tmp_path / "folder") as staged:
            (staged / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "weights").stat().st_mode & 0o777 == 0o640
