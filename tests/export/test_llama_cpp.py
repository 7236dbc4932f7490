"""What llama.cpp makes of exports: its own converter and library, on a CPU, in float32, beside the model.

It needs `pip install llama-cpp-python`, which builds for a quarter of an hour, and LLAMA_CPP, the folder of llama.cpp's
source, which is in vendor/ of that package's: `LLAMA_CPP=... pytest -m llama_cpp tests/export/test_llama_cpp.py`.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hybridlm as hl
from hybridlm.export.command import export_model
from hybridlm.text import FileCodec
from hybridlm.train.tokenize import train_tokenizer
from tests.export.common import built

pytestmark = pytest.mark.llama_cpp
TEXT = "Once upon a tîme 123  x and then on and on, and more of it. " * 3
LIMIT = 3e-5  # of the logits' RMS: two programs of their own, in another order
MIXERS = {
    "A": {"type": "attention", "heads": 4, "kv_heads": 2},
    "R": {"type": "attention", "heads": 4, "kv_heads": 2, "rope": True},
    "M": {"type": "mamba2", "d_state": 16, "head_dim": 16},
    "m": {"type": "mamba", "d_state": 16},
    "W": {"type": "sliding_window", "heads": 4, "window": 16},
}
SERVED = {"llama": "AA", "granite_hybrid": "MAM", "mamba2": "MM", "mamba": "mm", "falcon_h1": "<R|M>R"}
NOT_SERVED = {"mistral": "WW", "granite_hybrid": "MRM"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level BPE of 320 tokens."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT * 20 + Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return train_tokenizer(str(folder), vocab_size=320, output=folder / "tokenizer.json")


def exported(target, pattern, tokenizer, folder):
    """The model, and the export of it."""
    blocks = {letter: {"mixer": MIXERS[letter]} for letter in pattern if letter in MIXERS}
    spec = {"pattern": pattern, "d_model": 64, "vocab_size": 320, "blocks": blocks}
    model = built({**spec, "mlp": "none"} if target.startswith("mamba") else spec)
    hl.save(model, folder / "saved")
    shutil.copy(tokenizer, folder / "saved")
    export_model(str(folder / "saved"), str(folder / "out"), to=target)
    return model, folder / "out"


def converted(folder, monkeypatch):
    """The GGUF file that llama.cpp's converter makes; it is told which way of splitting text the tokenizer has."""
    source = Path(os.environ["LLAMA_CPP"])
    for place in (source, source / "gguf-py"):
        monkeypatch.syspath_prepend(str(place))
    import convert_hf_to_gguf
    from conversion import base

    monkeypatch.setattr(base.TextModel, "get_vocab_base_pre", lambda self, tokenizer: "gpt-2")
    file = folder / "model.gguf"
    monkeypatch.setattr(sys, "argv", ["convert", str(folder), "--outfile", str(file), "--outtype", "f32"])
    convert_hf_to_gguf.main()
    return file


def errors(model, folder, tokenizer, monkeypatch):
    """The worst error of a logit over the RMS of all: at once, and token by token. Ids are compared on the way."""
    from llama_cpp import Llama

    file = converted(folder, monkeypatch)
    theirs = Llama(str(file), n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    ids = FileCodec(tokenizer).encode(TEXT)
    assert theirs.tokenize(TEXT.encode(), add_bos=False) == ids
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    found = []
    for pieces in ([ids], [ids[:5], *([one] for one in ids[5:])]):
        theirs.reset()
        for piece in pieces:
            theirs.eval(piece)
        logits = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
        found.append(((logits - wanted).abs().max() / wanted.square().mean().sqrt()).item())
    return found


@pytest.mark.parametrize("target", SERVED)
def test_it_computes_the_model(target, tokenizer, tmp_path, monkeypatch):
    model, folder = exported(target, SERVED[target], tokenizer, tmp_path)
    assert "llama-server" in (folder / "README.md").read_text()
    assert max(errors(model, folder, tokenizer, monkeypatch)) <= LIMIT


@pytest.mark.parametrize("target", NOT_SERVED)
def test_it_is_not_offered_where_it_computes_something_else(target, tokenizer, tmp_path, monkeypatch):
    """Where this fails, llama.cpp has learned something, and may be offered."""
    model, folder = exported(target, NOT_SERVED[target], tokenizer, tmp_path)
    assert "llama-server" not in (folder / "README.md").read_text()
    assert min(errors(model, folder, tokenizer, monkeypatch)) > 0.1
