"""Where exports go: what is a user's stays, whatever it looks like; only an unchanged export is replaced."""

import json

import pytest

from hybridlm.errors import ExportError
from hybridlm.export.place import RECORD, read_record, require_empty, require_place, write_record


@pytest.fixture
def source(tmp_path):
    """A folder that is read."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def earlier(tmp_path):
    """An export of before: two files and their record."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_record(folder, {"target": "llama"})
    return folder


def test_new_and_empty_folders_are_free(source, tmp_path):
    assert require_place(tmp_path / "new" / "deep", source) == []
    (tmp_path / "empty").mkdir()
    assert require_place(tmp_path / "empty", source) == []
    (tmp_path / "empty" / ".saving-x").mkdir()  # left by one that was killed
    assert require_place(tmp_path / "empty", source) == []
    require_empty(tmp_path / "empty", source)


def test_an_earlier_export_is_replaced_when_asked(source, earlier):
    with pytest.raises(ExportError, match=r"an earlier export \(llama\); --overwrite"):
        require_place(earlier, source)
    assert require_place(earlier, source, overwrite=True) == ["config.json", RECORD, "model.safetensors"]
    with pytest.raises(ExportError, match="it holds an export"):
        require_empty(earlier, source)
    (earlier / "config.json").unlink()  # what is gone cannot be lost
    assert require_place(earlier, source, overwrite=True) == [RECORD, "model.safetensors"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_things_stay(source, tmp_path, overwrite):
    (tmp_path / "other").mkdir()
    for i in range(5):
        (tmp_path / "other" / f"{i}.txt").touch()
    with pytest.raises(ExportError, match=r"other things \(0.txt, 1.txt, 2.txt and 2 more\)"):
        require_place(tmp_path / "other", source, overwrite)


def test_what_was_changed_or_added_stays(source, earlier):
    (earlier / "config.json").write_text("{} ")
    with pytest.raises(ExportError, match=r"changed since it was exported: config\.json"):
        require_place(earlier, source, overwrite=True)
    (earlier / "config.json").write_text("{}")
    (earlier / "notes.txt").touch()
    with pytest.raises(ExportError, match=r"beside the earlier export it holds notes\.txt"):
        require_place(earlier, source, overwrite=True)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "\0", '{"files": {}}', '{"files": 3, "target": "llama"}', '{"files": {}, "target": 3}'),
        *('{"files": {"a": 3}, "target": "llama"}', '{"files": {"a": {"sha256": 3}}, "target": "llama"}'),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_record_that_is_none_protects_what_is_there(source, tmp_path, text):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / RECORD).write_text(text)
    (tmp_path / "made" / "a").touch()
    assert read_record(tmp_path / "made") is None
    with pytest.raises(ExportError, match="other things"):
        require_place(tmp_path / "made", source, overwrite=True)


def test_files_are_no_place(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file: a file; an export is a folder"):
        require_place(tmp_path / "file", source)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="a link that leads nowhere"):
        require_place(tmp_path / "link", source)


@pytest.mark.parametrize("inside", [".", "model", "new", "model/new", "../run", "../link/new"])
def test_nothing_is_written_into_what_is_read(source, tmp_path, inside):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ExportError, match="an export stands beside"):
        require_place(source / inside, source)


def test_the_record_names_every_file(earlier):
    record = json.loads((earlier / RECORD).read_text())
    assert record["format"] == 1
    assert {name: entry["bytes"] for name, entry in record["files"].items()} == {
        "config.json": 2,
        "model.safetensors": 7,
    }
