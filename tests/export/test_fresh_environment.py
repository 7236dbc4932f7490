"""Exports in environments made for them: torch and transformers, or torch alone, and nothing of hybridlm's.

What they have to answer is computed here before, and lies in a file beside the export.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from remote_models import MOE, SIZES, built, tokens
from test_remote_alone import beams

import hybridlm as hl
from hybridlm.export.program import write_torch_export
from hybridlm.export.program.agreement import LIMIT as PROGRAM_LIMIT
from hybridlm.export.proof import LIMIT, worst
from hybridlm.export.remote.write import write_remote
from hybridlm.testing.patterns import alphabet

pytestmark = pytest.mark.deep
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
ABSENT = {"hybridlm", "einops", "jaxtyping", "beartype", "lightning", "omegaconf"}

REMOTE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM

place, absent = sys.argv[1], json.loads(sys.argv[2])
asked = torch.load(f"{place}/asked.pt")
ids, mask = asked["ids"], asked["mask"]
how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

def answers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = {"whole": model(ids).logits, "padded": model(ids, attention_mask=mask).logits}
        out = model(ids[:, :5], use_cache=True)
        steps = [out.logits]
        for t in range(5, ids.shape[1]):
            out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
    written = {
        "greedy": model.generate(ids, **how),
        "greedy, padded": model.generate(ids, attention_mask=mask, **how),
        "beams": model.generate(ids, num_beams=3, **how),
        "beams, padded": model.generate(ids, attention_mask=mask, num_beams=3, **how),
    }
    return model, {**logits, "steps": torch.cat(steps, dim=1)}, written

model, logits, written = answers(f"{place}/model")
model.save_pretrained(f"{place}/saved")
del model
_, logits_again, written_again = answers(f"{place}/saved")
torch.save([logits, written, logits_again, written_again], f"{place}/answers.pt")
there = [name for name in absent if importlib.util.find_spec(name)]
print(json.dumps({"threads": torch.get_num_threads(), "there": there}))
"""

PROGRAMS = """
import importlib.util, json, sys
import torch

place, absent = sys.argv[1], json.loads(sys.argv[2])
asked = torch.load(f"{place}/asked.pt")
about = json.load(open(f"{place}/model/torch-export.json"))
prefill, step = (torch.export.load(f"{place}/model/{name}.pt2").module() for name in ("prefill", "step"))
sizes = {"b": len(asked["ids"]), "s": 64}
shapes = [([sizes.get(n, n) for n in port["shape"]], port["dtype"]) for port in about["state"]]
state = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in shapes]
logits, *state = prefill(asked["ids"], asked["mask"].bool(), *state)
written, first = [logits[:, -1:].argmax(-1)], logits
for _ in range(7):
    logits, *state = step(written[-1], *state)
    written.append(logits.argmax(-1))
torch.save([first, torch.cat([asked["ids"], *written], dim=1)], f"{place}/answers.pt")
there = [name for name in absent if importlib.util.find_spec(name)]
print(json.dumps({"threads": torch.get_num_threads(), "there": there}))
"""


def environment(folder: Path, *packages: str) -> Path:
    """The interpreter of a new virtual environment with these packages, in the versions that the tests run with."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), *packages]
    done = subprocess.run(install, capture_output=True, text=True, env=surroundings())
    assert done.returncode == 0, done.stderr  # no package index, say: without one there is nothing to be tried here
    return python


def surroundings(**more: str) -> dict[str, str]:
    """The variables of this process, without those that bring packages of its own along."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TRITON_INTERPRET", "HF_HOME", "HF_MODULES_CACHE")
    return {name: value for name, value in os.environ.items() if name not in left_out} | more


@pytest.fixture(scope="module")
def with_transformers(tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp("transformers") / "v", "torch", "transformers")


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp("torch") / "v", "torch")


def run(python: Path, script: str, place: Path, absent: set[str], threads: int = 1) -> None:
    """Run a script there, on `place`; it has so many threads, and finds none of the packages that are to be absent."""
    more = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hf")}
    command = [str(python), "-I", "-c", script, str(place), json.dumps(sorted(absent))]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings(**more), cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"threads": threads, "there": []}


def asked(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask with pads on the left, which are put down there."""
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.int64)
    mask[1, :4], mask[2, :1] = 0, 0
    torch.save({"ids": ids, "mask": mask}, place / "asked.pt")
    return ids, mask.bool()


def model_of(pattern: str, **spec) -> hl.HybridLM:
    blocks = {name: block for name, block in alphabet(d_model=SIZES["d_model"]).items() if f"[{name}]" in pattern}
    return built({**SIZES, "pattern": pattern, "blocks": blocks, **spec})


STACKS = {
    "S4": {"pattern": "[s4]2 [s4d]"},
    "a window beside an SSM": {"pattern": "<[sliding_window]|[mamba2]> [s4] [sliding_window]"},
    "MLA": {"pattern": "[mla][mamba]"},
    "parallel heads": {"pattern": "<[attention]|[mamba2]|[s4]>{combine: norm_mean} <[mla]|[mamba3]>"},
    "shared blocks": {
        "pattern": "[attention]@x [mamba]@y - [attention]@x{low_rank: 4} [mamba]@y",
        "tie_embeddings": True,
    },
    "H3": {"pattern": "[h3][attention]"},
    "delta rules": {"pattern": "[gated_deltanet][rwkv7][linear_attention]"},
    "gates": {"pattern": "[lstm][gru][short_conv][s5]", "norm": "layernorm", "mlp": {"type": "gelu"}},
    "experts": {"pattern": "[mamba2][attention]", "mlp": MOE, "norms": "sandwich"},
}


@pytest.mark.parametrize(("name", "threads"), [*((name, 1) for name in STACKS), ("a window beside an SSM", 2)])
def test_remote_code(name, threads, with_transformers, tmp_path):
    """Whole rows, pads, steps, greedy and beams, and all of it again of what save_pretrained wrote."""
    model, (ids, valid) = model_of(**STACKS[name]), asked(tmp_path)
    full = torch.ones_like(valid)
    with torch.no_grad():
        wanted = {"whole": model(ids).logits, "padded": model(ids, valid=valid).logits}
    greedy = {"greedy": hl.generate(model, ids, 8), "greedy, padded": hl.generate(model, ids, 8, valid=valid)}
    beamed = {"beams": beams(model, ids, full), "beams, padded": beams(model, ids, valid)}
    write_remote(model, tmp_path / "model")

    run(with_transformers, REMOTE, tmp_path, ABSENT, threads)

    logits, written, logits_again, written_again = torch.load(tmp_path / "answers.pt")
    assert worst(logits["whole"], wanted["whole"]) <= LIMIT
    assert worst(logits["steps"], wanted["whole"]) <= LIMIT
    assert worst(logits["padded"][valid], wanted["padded"][valid]) <= LIMIT
    for kind, sequence in {**greedy, **beamed}.items():
        assert torch.equal(written[kind], sequence), kind
    assert all(torch.equal(logits_again[kind], logits[kind]) for kind in logits)
    assert all(torch.equal(written_again[kind], written[kind]) for kind in written)


SEQUENCES = {
    "a hybrid": {"pattern": "[mamba2][attention]"},
    "S4 beside a window": {"pattern": "[s4][sliding_window]"},
    "delta rules and shared blocks": {"pattern": "[gated_deltanet]@x [mla] [gated_deltanet]@x"},
}


@pytest.mark.parametrize(("name", "threads"), [*((name, 1) for name in SEQUENCES), ("a hybrid", 2)])
def test_programs(name, threads, torch_alone, tmp_path):
    model, (ids, valid) = model_of(**SEQUENCES[name]), asked(tmp_path)
    with torch.no_grad():
        wanted = model(ids, valid=valid).logits
    write_torch_export(model, tmp_path / "model", piece=8)

    run(torch_alone, PROGRAMS, tmp_path, ABSENT | {"transformers"}, threads)

    logits, written = torch.load(tmp_path / "answers.pt")
    assert worst(logits[valid], wanted[valid]) <= PROGRAM_LIMIT
    assert torch.equal(written, hl.generate(model, ids, 8, valid=valid))
