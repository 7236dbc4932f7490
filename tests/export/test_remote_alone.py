"""An export in a process that has no hybridlm, einops, jaxtyping or beartype: generate, beams, pads, saved and read.

By default the imports of its file are looked at, in test_remote.py; these start transformers anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from remote_models import STACKS, WORDS, built, tokens

import hybridlm as hl
from hybridlm.export.proof import LIMIT, worst
from hybridlm.export.remote.write import write_remote

ALONE = '''
import json, sys

class Blocker:
    """Nothing but torch, transformers and what these need."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"hybridlm", "einops", "jaxtyping", "beartype", "triton", "omegaconf"}:
            raise ModuleNotFoundError(f"{name} is not there", name=name)

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM

folder, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids, mask = torch.load(folder + "/../ids.pt"), torch.load(folder + "/../mask.pt")
how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
with torch.no_grad():
    logits = model(ids, attention_mask=mask).logits
found = {"greedy": model.generate(ids, **how).tolist(), "beams": model.generate(ids, num_beams=3, **how).tolist()}
model.save_pretrained(again)
model = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True).eval()
found["beams again"] = model.generate(ids, num_beams=3, **how).tolist()
with torch.no_grad():
    torch.save({"logits": logits, "again": model(ids, attention_mask=mask).logits}, folder + "/../found.pt")
found["blocked"] = sorted(name for name in sys.modules if name.partition(".")[0] in {"hybridlm", "einops", "jaxtyping"})
print(json.dumps(found))
'''


def alone(folder, again):
    """What the script prints."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [sys.executable, "-I", "-c", ALONE, str(folder), str(again)]
    done = subprocess.run(command, capture_output=True, text=True, env=inherited, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.deep
@pytest.mark.parametrize("name", STACKS)
def test_torch_and_transformers_are_all_that_it_needs(name, tmp_path):
    model, ids, mask = built(STACKS[name]), tokens(3, 9), torch.ones(3, 9, dtype=torch.int64)
    mask[1, :4] = 0
    torch.save(ids, tmp_path / "ids.pt"), torch.save(mask, tmp_path / "mask.pt")
    write_remote(model, tmp_path / "model")

    found = alone(tmp_path / "model", tmp_path / "again")

    logits = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        wanted = model(ids, valid=mask.bool()).logits
    assert worst(logits["logits"][mask.bool()], wanted[mask.bool()]) <= LIMIT
    assert torch.equal(logits["logits"], logits["again"])
    assert found["greedy"] == hl.generate(model, ids, 8, valid=mask.bool()).tolist()
    assert found["beams"] == found["beams again"] == beams(model, ids, mask.bool()).tolist()
    assert found["blocked"] == []


@torch.no_grad()
def beams(model, ids, valid, width=3, steps=8):
    """Beam search in a few lines, on our model, each time from the beginning."""
    best = []
    for row, real in zip(ids, valid, strict=True):
        rows, scores = row[None], torch.zeros(1)
        for _ in range(steps):
            seen = torch.cat([real, torch.ones(rows.shape[1] - len(real), dtype=torch.bool)]).expand(rows.shape)
            after = model(rows, valid=seen).logits[:, -1].log_softmax(-1)
            scores, chosen = (scores[:, None] + after).flatten().topk(width)
            rows = torch.cat([rows[chosen // WORDS], chosen[:, None] % WORDS], dim=1)
        best.append(rows[scores.argmax()])
    return torch.stack(best)
