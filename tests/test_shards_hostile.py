"""Files of weights that are damaged, hostile, or cut off half-way: told in words for people."""

import json
import os
from collections import OrderedDict
from contextlib import suppress

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridlm.errors import CheckpointError
from hybridlm.shards import INDEX, WEIGHTS, Entry, ShardReader, entries_of, write_shards

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(5, dtype=torch.int8), "c": torch.ones(2).bfloat16()}
ENTRIES = entries_of(TENSORS.items())


def blob(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def about(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def sharded(folder):
    """One tensor in each of three files; the index as a dict that can be spoilt."""
    write_shards(folder, ENTRIES, TENSORS.items(), max_bytes=1)
    return json.loads((folder / INDEX).read_text())


# ------------------------------------------------------------------------------------------------------- one file
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "cut off, or no safetensors file"),
        (b"1234567", "cut off, or no safetensors file"),
        (blob({}, length=3), "cut off"),
        (blob({}, length=1 << 62), "cut off"),
        (b"\x80\x02}q\x00." + bytes(20), "cut off"),
        (blob(b"{"), "damaged"),
        (blob(b"\xff\xfe"), "damaged"),
        (blob(b"[" * 100_000), "damaged"),
        (blob(b"9" * 10_000), "damaged"),
        (blob([]), "a list where names and tensors should be"),
        (
            blob(b'{"a":' + json.dumps(about()).encode() + b',"a":' + json.dumps(about()).encode() + b"}"),
            "a: there twice",
        ),
        (blob({"a": 3}), "a: damaged: 3 is not dtype, shape and data_offsets"),
        (blob({"a": about() | {"device": "cuda"}}, bytes(8)), "is not dtype, shape and data_offsets"),
        (blob({"a": about("F31")}, bytes(8)), "dtype 'F31' cannot be read here; known are"),
        (blob({"a": about(["F32"])}, bytes(8)), "cannot be read here"),
        (blob({"a": about(shape=[-2])}, bytes(8)), "damaged: shape"),
        (blob({"a": about(shape=[2.0])}, bytes(8)), "damaged: shape"),
        (blob({"a": about(shape=[True, 2])}, bytes(8)), "damaged: shape"),
        (blob({"a": about(offsets=[0])}, bytes(8)), "data_offsets"),
        (blob({"a": about(offsets=[-8, 0])}, bytes(8)), "data_offsets"),
        (blob({"a": about(shape=[3])}, bytes(8)), r"8 bytes for F32 of shape \[3\], which has 12"),
        (blob({"a": about(shape=[10**30])}, bytes(8)), "8 bytes for F32"),
        (blob({"a": about(offsets=[8, 16])}, bytes(16)), "begins at byte 8 of the data instead of 0"),
        (blob({"a": about(), "b": about(offsets=[4, 12])}, bytes(12)), "b: damaged: begins at byte 4"),
        (blob({"a": about(), "b": about()}, bytes(8)), "damaged: begins at byte 0 of the data instead of 8"),
        (blob({"a": about()}, bytes(7)), "cut off: 7 bytes of data, its tensors have 8"),
        (blob({"a": about()}, bytes(9)), "damaged: 9 bytes of data, its tensors have 8"),
        (blob({}, bytes(1)), "1 bytes of data"),
    ],
)
def test_a_file_that_is_none_is_told_with_its_name(tmp_path, content, fault):
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=fault) as caught:
        ShardReader(tmp_path)
    assert WEIGHTS in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_cut_at_any_byte_is_noticed(tmp_path):
    write_shards(tmp_path, ENTRIES, TENSORS.items())
    whole = (tmp_path / WEIGHTS).read_bytes()
    for size in range(len(whole)):
        (tmp_path / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            ShardReader(tmp_path)


@pytest.mark.parametrize("form", [WEIGHTS, INDEX, "pytorch_model.bin"])
@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4), st.text('0129{}[]",:-.e\\x00ÿ', max_size=4)), min_size=1)
)
def test_whatever_stands_in_a_file_is_read_or_refused(tmp_path_factory, form, changes):
    """Bytes cut out and put in, mostly in the header: a CheckpointError, or tensors of the shapes that it says."""
    folder = tmp_path_factory.mktemp("any")
    if form == INDEX:
        sharded(folder)
    elif form == WEIGHTS:
        write_shards(folder, ENTRIES, TENSORS.items())
    else:
        torch.save(TENSORS, folder / form)
    content = (folder / form).read_bytes()
    for at, gone, new in changes:
        content = content[:at] + new.encode("latin-1") + content[at + gone :]
    (folder / form).write_bytes(content)
    with suppress(CheckpointError):
        reader = ShardReader(folder)
        assert {name: tuple(tensor.shape) for name, tensor in reader} == {
            e.name: e.shape for e in reader.entries.values()
        }


def test_a_file_cut_off_after_it_was_opened_is_an_error_and_no_crash(tmp_path):
    write_shards(tmp_path, ENTRIES, TENSORS.items())
    reader = ShardReader(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 20)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        reader.read("c")


@pytest.mark.parametrize("shift", range(8))
def test_numbers_that_another_writer_left_unaligned_are_read(tmp_path, shift):
    header = {"a": about("U8", [shift], [0, shift]), "b": about("F64", [2], [shift, shift + 16])}
    data = bytes(shift) + torch.tensor([1.5, -2.0], dtype=torch.float64).numpy().tobytes()
    (tmp_path / "any.safetensors").write_bytes(blob(header, data))
    read = ShardReader(tmp_path).read("b")
    assert read.tolist() == [1.5, -2.0]
    assert read.data_ptr() % 8 == 0


def test_what_was_read_can_be_written_to_and_changes_no_file(tmp_path):
    write_shards(tmp_path, ENTRIES, TENSORS.items())
    before = (tmp_path / WEIGHTS).read_bytes()
    reader = ShardReader(tmp_path)
    reader.read("b").mul_(2)
    assert torch.equal(reader.read("b"), TENSORS["b"])
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_an_unknown_name_offers_the_nearest(tmp_path):
    write_shards(tmp_path, [Entry("embed.weight", torch.float32, (1,))], [("embed.weight", torch.zeros(1))])
    with pytest.raises(CheckpointError, match=r"no tensor 'embed.wieght'. Did you mean 'embed.weight'"):
        ShardReader(tmp_path).read("embed.wieght")


# --------------------------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "C:\\x.safetensors", 3, "x"]
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, file):
    index = sharded(tmp_path / "in")
    safetensors.torch.save_file({"a": TENSORS["a"]}, tmp_path / "x.safetensors")
    index["weight_map"]["a"] = file
    (tmp_path / "in" / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"a: .* is not the name of a \.safetensors or \.bin file in the same folder"
    ):
        ShardReader(tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "damaged"),
        ("[]", "a list where"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": ["a"]}', "no weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a: there twice"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "missing: model-9.safetensors; .* names them"),
    ],
)
def test_an_index_that_is_none_is_told(tmp_path, content, fault):
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=fault):
        ShardReader(tmp_path)


def test_index_and_files_agree_or_every_name_is_told(tmp_path):
    index = sharded(tmp_path)
    index["weight_map"] |= {"ghost": "model-00001-of-00003.safetensors"}
    del index["weight_map"]["c"]
    index["weight_map"]["also"] = "model-00003-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"ghost: in the index, not in model-00001-of-00003.safetensors"):
        ShardReader(tmp_path)
    del index["weight_map"]["ghost"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        ShardReader(tmp_path)
    assert "also: in the index, not in model-00003" in str(caught.value)
    assert "c: in model-00003-of-00003.safetensors, which the index does not say" in str(caught.value)


def test_a_missing_shard_and_a_name_in_two_are_told(tmp_path):
    sharded(tmp_path)
    second = tmp_path / "model-00002-of-00003.safetensors"
    safetensors.torch.save_file(TENSORS, second)
    with pytest.raises(CheckpointError, match="b, c: in two files; a name belongs to one tensor"):
        ShardReader(tmp_path)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"missing: model-00002-of-00003.safetensors"):
        ShardReader(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match="shards without their index"):
        ShardReader(tmp_path)


def test_two_forms_at_once_are_not_guessed_between(tmp_path):
    sharded(tmp_path)
    safetensors.torch.save_file(TENSORS, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"both .* and .*; name the one that is meant"):
        ShardReader(tmp_path)
    assert len(ShardReader(tmp_path / INDEX).files) == 4
    assert len(ShardReader(tmp_path / WEIGHTS).files) == 1


def test_links_to_files_elsewhere_are_followed(tmp_path):
    """As the Hub's cache has them: the name in the index is one of the folder, whatever it links to."""
    sharded(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert {name: tensor.tolist() for name, tensor in ShardReader(tmp_path / "snapshot")} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no model\.safetensors, model\.safetensors\.index\.json or pytorch_model"
    ):
        ShardReader(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        ShardReader(tmp_path / "none")
    for name in ("x.safetensors", "y.safetensors"):
        safetensors.torch.save_file(TENSORS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"x\.safetensors, y\.safetensors; name the one"):
        ShardReader(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="weights are"):
        ShardReader(tmp_path / "weights.pt")


# --------------------------------------------------------------------------------------------------------- pickles
class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_pickles_are_read_and_run_no_code(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    held = OrderedDict(TENSORS, p=nn.Parameter(torch.ones(2)), t=TENSORS["b"].t())
    torch.save(held, "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    read = dict(ShardReader(tmp_path))
    assert list(read) == list(held)
    assert all(torch.equal(read[name], held[name]) for name in held)
    assert not read["p"].requires_grad
    torch.save({"a": TENSORS["a"], "b": Evil()}, "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
        ShardReader(tmp_path)
    assert not os.path.exists("evil")


@pytest.mark.parametrize("held", [[1], {"a": 1, "b": torch.ones(1)}, {3: torch.ones(1)}], ids=str)
def test_a_pickle_of_something_else_is_told(tmp_path, held):
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: "):
        ShardReader(tmp_path)


def test_pickles_in_shards_have_an_index_too(tmp_path):
    for file, name in (("pytorch_model-1.bin", "a"), ("pytorch_model-2.bin", "b")):
        torch.save({name: TENSORS[name]}, tmp_path / file)
    where = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert set(ShardReader(tmp_path).entries) == {"a", "b"}
    safetensors.torch.save_file(TENSORS, tmp_path / WEIGHTS)
    assert set(ShardReader(tmp_path).entries) == {"a", "b", "c"}
