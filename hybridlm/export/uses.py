"""What a card says of using an export: code and commands, each as it can be copied."""

from __future__ import annotations

import json
import shlex

from hybridlm.export.family import FAMILIES
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
ids = torch.tensor([[1, 2, 3]])  # the folder has no tokenizer
print(model.generate(ids, max_new_tokens=50)[0])"""
OURS = """\
import hybridlm as hl

model = hl.load({folder})"""
COMMANDS = {
    "vLLM": "vllm serve {folder}",
    "SGLang": "python -m sglang.launch_server --model-path {folder}",
    "llama.cpp": "python convert_hf_to_gguf.py {folder} --outfile model.gguf\nllama-server -m model.gguf",
}
TRUSTED = (
    "The layers of the model are in `modeling_hybridlm.py`, which `trust_remote_code=True` lets transformers run: read "
    "it first, as any code of others. It needs torch and transformers, and nothing of hybridlm."
)


def use_of(target: Target, folder: str, has_tokenizer: bool) -> str:
    """The section on how it is served."""
    trust = ", trust_remote_code=True" if target.code else ""
    code = (TEXT if has_tokenizer else IDS).format(folder=_quoted(folder), trust=trust)
    found = ["## Serve it", *([TRUSTED] if trust else []), "With transformers:", _block("python", code)]
    for server in target.served_by:
        name = server.partition(" (")[0]
        if name in COMMANDS:
            command = COMMANDS[name].format(folder=shlex.quote(folder))
            found += [f"With {server}; not run here:", _block("sh", command)]
    return "\n\n".join(found)


def back_of(target: Target, folder: str) -> str:
    """The section on how it is trained on, or studied, in hybridlm."""
    heading = "## Back into hybridlm"
    if target.name in FAMILIES:
        command = _block("sh", f"hybridlm import {shlex.quote(folder)} OUT")
        given = "gives a folder that `hl.load` and `hybridlm generate` open: these weights, to the bit."
        return f"{heading}\n\n{command}\n\n{given}"
    code = _block("python", OURS.format(folder=_quoted(folder)))
    return f"{heading}\n\nThe folder is one of hybridlm's own as well:\n\n{code}"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _quoted(folder: str) -> str:
    return json.dumps(folder, ensure_ascii=False)
