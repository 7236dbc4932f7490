"""Weights in files, tensor by tensor."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import CheckpointError
from hybridlm.shards import INDEX, WEIGHTS, ShardReader, entries_of, write_shards
from hybridlm.shards.layout import DTYPES

FOREIGN = {torch.float8_e8m0fnu}  # the library writes it, and cannot read it
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPE = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPE = st.sampled_from([dtype for dtype in DTYPES.values() if dtype not in FOREIGN])


@st.composite
def tensors(draw):
    """Random bits under every dtype of the format, NaNs among them."""
    found, generator = {}, torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for name, dtype, shape in draw(st.lists(st.tuples(NAME, DTYPE, SHAPE), max_size=8)):
        count = torch.Size(shape).numel() * dtype.itemsize
        bits = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
        found[name] = bits.view(dtype).reshape(shape)
    return found


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def same(read, written):
    found = dict(read)
    return found.keys() == written.keys() and all(bits(found[name]) == bits(written[name]) for name in written)


@given(tensors())
def test_a_file_is_byte_by_byte_what_the_library_writes(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("own")
    assert write_shards(folder, entries_of(written.items()), written.items()) == [WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == safetensors.torch.save(written, {"format": "pt"})
    assert same(ShardReader(folder), written)


@given(tensors(), st.integers(1, 200))
def test_shards_hold_every_tensor_once_and_keep_the_limit(tmp_path_factory, written, limit):
    folder = tmp_path_factory.mktemp("own")
    files = write_shards(folder, entries_of(written.items()), written.items(), max_bytes=limit)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert same(ShardReader(folder), written)
    shards = {name: safetensors.torch.load_file(folder / name) for name in files if name != INDEX}
    for held in shards.values():
        assert len(held) <= 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    if len(shards) > 1:
        index = json.loads((folder / INDEX).read_text())
        assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in written.values())}
        assert index["weight_map"] == {name: file for file, held in shards.items() for name in held}


def test_a_dtype_or_name_that_the_format_cannot_hold_is_refused(tmp_path):
    for name, tensor in (("a", torch.zeros(1, dtype=torch.complex128)), ("__metadata__", torch.zeros(1))):
        with pytest.raises(CheckpointError, match=name):
            write_shards(tmp_path / "new", entries_of([(name, tensor)]), [(name, tensor)])
    assert not (tmp_path / "new").exists()
