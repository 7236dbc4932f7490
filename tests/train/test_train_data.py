"""TextData: the same sample for the same (seed, i), targets that stop at documents, a cache never half-built."""

from __future__ import annotations

import itertools
import os
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import DataError
from hybridlm.text import FileCodec
from hybridlm.train import tokens as tokens_module
from hybridlm.train.data import TextData, TrainingStream, cut_windows, permute
from hybridlm.train.tokens import ByteTokenizer, FileTokenizer, open_bins, token_bins


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"document {i}: " + "abcdefgh" * (3 + i % 7))
    return folder


def make(text, tmp_path, **settings):
    defaults = {"context": 16, "batch_size": 4, "held_out": 0.2, "cache": str(tmp_path / "cache")}
    data = TextData(str(text), **{**defaults, **settings})
    data.prepare_data()
    data.setup()
    return data


def first(data, count):
    return list(itertools.islice(data.train_dataloader(), count))


def same(a, b):
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_batch_shapes_and_shift(text, tmp_path):
    (batch,) = first(make(text, tmp_path), 1)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == dict.fromkeys(
        ("ids", "targets", "segment_ids"), ((4, 16), torch.int64)
    )
    inner = batch["targets"][:, :-1] != -100
    assert torch.equal(batch["targets"][:, :-1][inner], batch["ids"][:, 1:][inner])
    assert "segment_ids" not in first(make(text, tmp_path, pack=False), 1)[0]


def test_samples_are_a_function_of_the_seed_alone(text, tmp_path):
    batches = first(make(text, tmp_path, seed=3), 6)
    assert same(batches, first(make(text, tmp_path, seed=3), 6))
    assert same(batches, first(make(text, tmp_path, seed=3, workers=2), 6))
    assert not same(batches, first(make(text, tmp_path, seed=4), 6))
    twice = make(text, tmp_path, seed=3, batch_size=8)
    halves = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(batches[::2], batches[1::2], strict=True)]
    assert same(halves, first(twice, 3))


def test_ranks_share_the_samples_of_one_device(text, tmp_path):
    data = make(text, tmp_path, batch_size=2)
    settings = {"context": 16, "pack": True, "seed": 0}
    whole = TrainingStream(data.bins.train, batch_size=4, **settings)
    ranks = [TrainingStream(data.bins.train, batch_size=2, rank=r, world=2, **settings) for r in (0, 1)]
    parts = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in itertools.islice(zip(*ranks, strict=True), 5)]
    assert same(list(itertools.islice(whole, 5)), parts)


def test_a_saved_position_continues(text, tmp_path):
    data = make(text, tmp_path)
    batches = first(data, 5)
    data.load_state_dict({"samples": 8})
    assert same(batches[2:], first(data, 3))
    assert data.state_dict() == {"samples": 8}


def test_a_pass_visits_every_window_once(text, tmp_path):
    data = make(text, tmp_path)
    stream = data.train_dataloader().dataset
    for epoch in (0, 1):
        offsets = stream.offsets(np.arange(epoch * stream.windows, (epoch + 1) * stream.windows))
        assert len(set(offsets.tolist())) == stream.windows
        assert len(set((offsets % 16).tolist())) == 1
        assert offsets.min() >= 0
        assert offsets.max() + 16 < data.bins.train.tokens
    order = [stream.offsets(np.arange(stream.windows) + e * stream.windows).tolist() for e in (0, 1)]
    assert order[0] != order[1]


@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_targets_stop_at_documents():
    tokens, starts = np.arange(10, 22, dtype=np.uint16), np.array([0, 3, 4])
    batch = cut_windows(tokens, starts, np.array([1, 8]), 5, pack=True)
    assert batch["ids"].tolist() == [[11, 12, 13, 14, 15], [18, 19, 20, 21, 21]]
    assert batch["targets"].tolist() == [[12, -100, -100, 15, 16], [19, 20, 21, -100, -100]]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]]


def test_held_out_windows_predict_every_token_once(text, tmp_path):
    data = make(text, tmp_path, context=13)
    targets = torch.cat([batch["targets"].flatten() for batch in data.val_dataloader()])
    held = data.bins.held_out
    mine = sorted(targets[targets != -100].tolist())
    wanted = np.delete(held.read(), held.starts())
    assert mine == sorted(wanted.tolist())


def test_validation_shuffles_the_windows_that_prediction_reads_in_order(text, tmp_path):
    data = make(text, tmp_path, context=13, batch_size=1)
    rows = [
        [tuple(b["ids"][0].tolist()) for b in loader] for loader in (data.val_dataloader(), data.predict_dataloader())
    ]
    assert sorted(rows[0]) == sorted(rows[1])
    assert rows[0] != rows[1]
    assert rows[0] == [tuple(b["ids"][0].tolist()) for b in data.val_dataloader()]
    assert [t for row in rows[1] for t in row][: data.bins.held_out.tokens] == data.bins.held_out.read().tolist()


def test_documents_are_on_one_side_and_stay_there(text, tmp_path):
    def documents(split):
        content = bytes(split.read().astype(np.uint8))
        return {part.tobytes() for part in np.split(np.frombuffer(content, np.uint8), split.starts()[1:])}

    before = make(text, tmp_path).bins
    assert documents(before.train) | documents(before.held_out) == {f.read_bytes() for f in text.iterdir()}
    assert not documents(before.train) & documents(before.held_out)
    (text / "more.txt").write_text("something else")
    after = make(text, tmp_path).bins
    assert documents(before.held_out) <= documents(after.held_out)
    assert documents(before.train) <= documents(after.train)


def test_a_lone_document_is_cut(tmp_path):
    (tmp_path / "a.txt").write_text("line\n" * 200)
    bins = make(tmp_path / "a.txt", tmp_path).bins
    assert (bins.train.tokens, bins.held_out.tokens) == (800, 200)


def test_both_splits_hold_something(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 50)
    for fraction in (1e-9, 1 - 1e-9):
        bins = make(str(tmp_path / "*.txt"), tmp_path, held_out=fraction).bins
        assert bins.train.documents == bins.held_out.documents == 1


def test_bins_are_built_once(text, tmp_path, monkeypatch):
    make(text, tmp_path)
    monkeypatch.setattr(tokens_module, "_build", lambda *_: pytest.fail("built again"))
    make(text, tmp_path, context=8)


def test_a_damaged_cache_is_built_anew(text, tmp_path, capsys):
    bins = make(text, tmp_path).bins
    good = bins.train.read().tolist()
    file = bins.train.folder / "train.bin"
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    assert make(text, tmp_path).bins.train.read().tolist() == good
    assert "damaged" in capsys.readouterr().err


def build(text, tmp_path):
    return token_bins(str(text), ByteTokenizer(), separator=None, fraction=0.2, cache=tmp_path / "cache")


def test_builders_may_race(text, tmp_path):
    """Each builds in a folder of its own; the file system is all that they share, as with processes."""
    with ThreadPool(4) as pool:
        bins = pool.map(lambda _: build(text, tmp_path), range(4))
    assert len({b.train.tokens for b in bins}) == 1
    (only,) = (tmp_path / "cache").iterdir()  # no temporary folder is left
    assert open_bins(only).train.read().tolist() == bins[0].train.read().tolist()


def test_the_first_finished_folder_wins(text, tmp_path, monkeypatch):
    publish = tokens_module._publish

    def late(work, folder):
        monkeypatch.setattr(tokens_module, "_publish", publish)
        build(text, tmp_path)  # another process is quicker
        publish(work, folder)

    monkeypatch.setattr(tokens_module, "_publish", late)
    assert build(text, tmp_path).train.tokens > 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_full_disk_leaves_no_half_bin(text, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="disk is full"):
        make(text, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 100_000}, "data.context: 100000 tokens, but the train text holds"),
        ({"context": 0}, "data.context: 0"),
        ({"batch_size": True}, "data.batch_size: True"),
        ({"workers": -1}, "data.workers: -1"),
        ({"held_out": 0.0}, "data.held_out: 0.0"),
        ({"held_out": float("nan")}, "data.held_out: nan"),
        ({"separator": ""}, "data.separator"),
        ({"tokenizer": "no.json"}, "data.tokenizer: no.json: no such file"),
        ({"tokenizer": __file__}, r"data\.tokenizer: .*: no tokenizer\.json"),
    ],
)
def test_settings_are_checked(text, tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        make(text, tmp_path, **settings)


def test_a_trained_tokenizer_reads_back(text, tmp_path):
    from hybridlm.train.tokenize import train_tokenizer

    file = train_tokenizer(str(text), vocab_size=300, output=tmp_path / "tokenizer.json")
    data = make(text, tmp_path, tokenizer=str(file), context=8)
    assert data.vocab_size <= 300
    assert data.bytes_per_token > 1.5
    tokenizer = FileTokenizer(file)
    ids = np.concatenate(list(tokenizer.encode("täxt\n".encode())))
    decoder, end = FileCodec(file).decoder(), FileCodec(file).end
    assert "".join(decoder.feed(token) for token in ids[:-1].tolist()) == "täxt\n"
    assert ids[-1] == end
    held = data.bins.held_out
    assert (held.read() == end).sum() == held.documents
