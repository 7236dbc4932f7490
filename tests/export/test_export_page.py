"""The export page's code runs."""

import re
from pathlib import Path

import torch

import hybridlm as hl
from hybridlm.export.targets import targets
from hybridlm.shards import ShardReader

PAGE = (Path(__file__).resolve().parents[2] / "docs/export.md").read_text(encoding="utf-8")


def test_every_target_has_its_place():
    assert [name for name in targets() if f"`{name}`" not in PAGE] == []


def test_code_about_files_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = hl.build(pattern="MA", d_model=32, vocab_size=256, seed=0)
    hl.save(model, "runs/tiny/0/model")
    hl.save(model, "checkpoint", max_shard_bytes=20_000)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for code in [code for code in blocks if "write_own(" in code or "ShardWriter" in code]:
        exec(code, {"torch": torch})
    assert hl.load("tiny-hub").spec == model.spec
    assert ShardReader("smaller").nbytes == ShardReader("checkpoint").nbytes // 2
