"""`hybridlm export --to remote-code`: a folder that transformers and hybridlm both open."""

from __future__ import annotations

import torch
from remote_models import SIZES, built, opened, tokens
from transformers import AutoTokenizer

import hybridlm as hl
from hybridlm.cli import main

MODEL = {
    **SIZES,
    "pattern": "SW",
    "vocab_size": 256,
    "blocks": {"S": {"mixer": "s4"}, "W": {"mixer": "sliding_window"}},
}


def test_a_model_that_no_family_holds_goes_out_as_code(tmp_path, capsys):
    model = built(MODEL)
    hl.save(model, tmp_path / "saved")
    assert main(["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "remote-code"]) == 0
    assert "allowed 2e-05" in " ".join(capsys.readouterr().out.split())

    card = (tmp_path / "out" / "README.md").read_text()
    assert f'from_pretrained("{tmp_path / "out"}", trust_remote_code=True)' in card
    assert "hybridlm import" not in card  # it is a folder of ours as it is
    theirs, ids = opened(tmp_path / "out"), tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(hl.load(tmp_path / "out")(ids).logits, model(ids).logits)
        assert torch.equal(theirs(ids).logits, theirs(ids, use_cache=False).logits)
    text = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert text.decode(text("Once upon")["input_ids"]) == "Once upon"


def test_what_is_no_language_model_is_refused(tmp_path, capsys):
    hl.save(built({**SIZES, "pattern": "A", "head": {"type": "classify", "classes": 3}}), tmp_path / "saved")
    assert main(["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "remote-code"]) != 0
    assert "head: classify" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
