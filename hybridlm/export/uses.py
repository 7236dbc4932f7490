"""What a card says of using an export: code and commands, each as it can be copied."""

from __future__ import annotations

import json
import shlex

from hybridlm.export.family import FAMILIES
from hybridlm.export.original import Original
from hybridlm.export.targets import Target

TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForCausalLM.from_pretrained({folder}{trust})
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))"""
"""For a folder with a tokenizer."""
IDS = """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({folder}{trust})
ids = torch.tensor([{ids}])  # the folder has no tokenizer
print(model.generate(ids, max_new_tokens=50)[0])"""
OURS = """\
import hybridlm as hl

model = hl.load({folder})"""
COMMANDS = {
    "vLLM": "vllm serve {folder}",
    "SGLang": "python -m sglang.launch_server --model-path {folder}",
    "llama.cpp": "python convert_hf_to_gguf.py {folder} --outfile model.gguf  # it has to know the tokenizer\n"
    "llama-server -m model.gguf",
}
"""Of what serves an export, and was not run beside it."""
TRUSTED = (
    "The layers of the model are in `modeling_hybridlm.py`, which `trust_remote_code=True` lets transformers run: read "
    "it first, as any code of others. It needs torch and transformers, and nothing of hybridlm."
)


PROGRAM = """\
import json
import torch

about = json.load(open({folder} + "/torch-export.json"))
prefill, step = (torch.export.load({folder} + f"/{{name}}.pt2").module() for name in ("prefill", "step"))
sizes = {{"b": 1, "s": 64}}  # rows, and the most tokens that a row can hold
shapes = [([sizes.get(n, n) for n in port["shape"]], getattr(torch, port["dtype"])) for port in about["state"]]
state = [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes]

ids = torch.tensor([{ids}])
logits, *state = prefill(ids, torch.ones_like(ids, dtype=torch.bool), *state)
for _ in range(20):
    ids = logits[:, -1:].argmax(-1)
    print(ids.item(), end=" ")
    logits, *state = step(ids, *state)"""
ONNX = """\
import json
import numpy as np
import onnxruntime

about = json.load(open({folder} + "/onnx.json"))
prefill, step = (onnxruntime.InferenceSession({folder} + f"/{{name}}.onnx") for name in ("prefill", "step"))
sizes = {{"b": 1, "s": 64}}  # rows, and the most tokens that a row can hold
shapes = {{port["name"]: ([sizes.get(n, n) for n in port["shape"]], port["dtype"]) for port in about["state"]}}
state = {{name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}}

ids = np.array([{ids}])
logits, *after = prefill.run(None, {{"ids": ids, "valid": np.ones_like(ids, dtype=bool), **state}})
for _ in range(20):
    ids = logits[:, -1:].argmax(-1)
    print(ids.item(), end=" ")
    logits, *after = step.run(None, {{"ids": ids, **dict(zip(state, after))}})"""
PROGRAMS = {"torch-export": PROGRAM, "onnx": ONNX}
TWO = (
    "`prefill` reads a row, `step` goes on by one; both take the state of all layers as tensors and give the next one. "
    "The `.json` file names what goes in and comes out. Neither needs hybridlm."
)


def use_of(target: Target, folder: str, original: Original) -> str:
    """The section on how it is served."""
    ids = [n % (original.stack.spec.vocab_size or 1) for n in (1, 2, 3)]
    if target.name in PROGRAMS:
        code = _block("python", PROGRAMS[target.name].format(folder=_quoted(folder), ids=ids))
        return "\n\n".join(["## Run it", TWO, *([code] if original.stack.spec.is_language_model else [])])
    trust = ", trust_remote_code=True" if target.code else ""
    code = (IDS if original.text is None else TEXT).format(folder=_quoted(folder), trust=trust, ids=ids)
    found = ["## Serve it", *([TRUSTED] if trust else []), "With transformers:", _block("python", code)]
    for server in [name for name in target.served_by if name in COMMANDS]:
        command = COMMANDS[server].format(folder=shlex.quote(folder))
        found += [f"With {server}; not run here:", _block("sh", command)]
    return "\n\n".join(found)


def back_of(target: Target, folder: str) -> str:
    """The section on how it is trained on, or studied, in hybridlm."""
    heading = "## Back into hybridlm"
    if target.name in FAMILIES:
        command = _block("sh", f"hybridlm import {shlex.quote(folder)} OUT")
        given = "gives a folder that `hl.load` and `hybridlm generate` open: these weights, to the bit."
        return f"{heading}\n\n{command}\n\n{given}"
    if target.name in PROGRAMS:
        return f"{heading}\n\nPrograms are not read back: keep the model that they were made of."
    code = _block("python", OURS.format(folder=_quoted(folder)))
    return f"{heading}\n\nThe folder is one of hybridlm's own as well:\n\n{code}"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _quoted(folder: str) -> str:
    return json.dumps(folder, ensure_ascii=False)
