"""Models saved in several files, and models that earlier versions saved."""

import errno
import json
import os
import pathlib

import pytest
import safetensors.torch
import torch
from torch import nn

import hybridlm as hl
from hybridlm.errors import CheckpointError
from hybridlm.files import MANIFEST, write_manifest
from hybridlm.shards import INDEX, WEIGHTS

IDS = torch.arange(38).reshape(2, 19)
LIMIT = 20_000


def make(pattern: str = "(MA)2 S m W@x W@x{window: 3}", **changes) -> hl.HybridLM:
    return hl.build(pattern=pattern, d_model=32, vocab_size=50, **({"seed": 0} | changes)).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def listing(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_a_model_in_shards_is_the_model(tmp_path, dtype, tie):
    model = make(tie_embeddings=tie, dtype=dtype)
    hl.save(model, tmp_path, max_shard_bytes=LIMIT)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert listing(tmp_path) == sorted(["config.json", MANIFEST, INDEX, *(path.name for path in shards)])
    assert len(shards) > 2
    assert sum(len(safetensors.torch.load_file(path)) for path in shards) == len(model.state_dict())
    loaded = hl.load(tmp_path)
    assert same(loaded, model)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} >= {dtype}
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_a_small_model_is_one_file(tmp_path):
    hl.save(make(), tmp_path)
    assert listing(tmp_path) == ["config.json", MANIFEST, WEIGHTS]


def test_one_form_replaces_the_other_and_leaves_strangers_alone(tmp_path):
    stranger = tmp_path / "model-mine-of-1.safetensors"
    stranger.write_bytes(b"mine")
    hl.save(make(), tmp_path, max_shard_bytes=LIMIT)
    many = listing(tmp_path)
    hl.save(make("A", seed=1), tmp_path)
    assert listing(tmp_path) == sorted(["config.json", MANIFEST, WEIGHTS, stranger.name])
    assert same(hl.load(tmp_path), make("A", seed=1))
    hl.save(make(), tmp_path, max_shard_bytes=LIMIT)
    assert listing(tmp_path) == many
    assert same(hl.load(tmp_path), make())


@pytest.mark.parametrize(
    ("failing", "after"), [("fsync", 3), *(("replace", n) for n in range(0, 20, 3)), ("unlink", 0)]
)
def test_a_failed_change_of_form_leaves_the_model_that_was_there(tmp_path, monkeypatch, failing, after):
    hl.save(make("MA"), tmp_path, max_shard_bytes=LIMIT)
    before, calls = listing(tmp_path), []
    owner = pathlib.Path if failing == "unlink" else os
    real = getattr(owner, failing)

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == after + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space left"):
        hl.save(make("MAM", seed=1), tmp_path, **({} if failing == "unlink" else {"max_shard_bytes": LIMIT // 2}))
    monkeypatch.undo()
    assert same(hl.load(tmp_path), make("MA"))
    assert listing(tmp_path) == before


def test_a_failed_first_save_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        hl.save(make("A"), tmp_path / "new")
    assert listing(tmp_path) == []


def test_every_damage_to_shards_is_noticed(tmp_path):
    hl.save(make("MA"), tmp_path, max_shard_bytes=LIMIT)
    for name in listing(tmp_path):
        blob = (tmp_path / name).read_bytes()
        for damaged in (blob[: len(blob) // 2], blob[:-1] + bytes([blob[-1] ^ 1]), None):
            (tmp_path / name).unlink() if damaged is None else (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CheckpointError):
                hl.load(tmp_path)
        (tmp_path / name).write_bytes(blob)
    hl.load(tmp_path)


def test_a_shard_that_the_manifest_does_not_list_is_not_read(tmp_path):
    hl.save(make("MA"), tmp_path, max_shard_bytes=LIMIT)
    write_manifest(tmp_path, [INDEX, "config.json"])
    with pytest.raises(CheckpointError, match=r"not in manifest\.json: model-00001-of-"):
        hl.load(tmp_path)


def test_a_tensor_in_two_shards_or_none_is_told_by_name(tmp_path):
    hl.save(make("MA"), tmp_path, max_shard_bytes=LIMIT)
    names = [name for name in listing(tmp_path) if name != MANIFEST]
    shards = [tmp_path / name for name in names if name.startswith("model-")]
    tensors = [safetensors.torch.load_file(shard) for shard in shards]
    stray = next(iter(tensors[0]))
    for held, fault in (({**tensors[1], stray: tensors[0][stray]}, "in two files"), ({}, "in the index, not in")):
        safetensors.torch.save_file(held, shards[1])
        write_manifest(tmp_path, names)
        with pytest.raises(CheckpointError, match=fault) as caught:
            hl.load(tmp_path)
        assert (stray if held else next(iter(tensors[1]))) in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "5GB", True, None])
def test_a_limit_that_is_none_is_refused(tmp_path, limit):
    with pytest.raises(hl.SpecError, match="max_shard_bytes"):
        hl.save(make("A"), tmp_path / "new", max_shard_bytes=limit)
    assert listing(tmp_path) == []


def test_what_version_0_1_0_saved_still_loads(tmp_path):
    """Written as it was written then: no version in config.json, one file."""
    model = make()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    about = {"model_type": "hybridlm", "format": 1, "spec": model.spec.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(about, indent=2))
    write_manifest(tmp_path, ["model.safetensors", "config.json"])
    assert same(hl.load(tmp_path), model)


def test_a_loaded_model_does_not_hang_on_its_files(tmp_path):
    hl.save(make(), tmp_path)
    loaded = hl.load(tmp_path)
    with open(tmp_path / WEIGHTS, "r+b") as file:
        file.write(bytes(os.path.getsize(tmp_path / WEIGHTS)))
    assert same(loaded, make())
