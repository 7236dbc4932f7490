"""Models whose remote code is tried: every mixer, and every form of a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

import hybridlm as hl
from hybridlm.export.remote.write import write_remote
from hybridlm.registry import mixers
from hybridlm.testing.patterns import alphabet
from hybridlm.testing.subject import randomise

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

D, WORDS = 32, 97
SIZES = {"d_model": D, "vocab_size": WORDS, "mlp": {"type": "swiglu", "width": 24}}
MOE = {"type": "moe", "experts": 4, "top_k": 2, "width": 16, "shared_width": 16, "shared_gate": True, "expert": "geglu"}
SIGMOID = {**MOE, "score": "sigmoid", "bias_rate": 0.01, "shared_width": 0, "shared_gate": False, "expert": "relu2"}

STACKS: dict[str, dict[str, Any]] = {
    "mixers": {**SIZES, "pattern": "".join(f"[{name}]" for name in mixers.names()), "blocks": alphabet(d_model=D)},
    "forms": {
        **SIZES,
        "pattern": "<A|M> [Z]{output: next_mixer} <W|S>{combine: norm_mean} A@x W@y{window: 4} A@x{low_rank: 4} -"
        " W@y{window: 9, low_rank: {mixer: 2}} [Z]@z{output: next_mixer} M [Z]@z",
        "blocks": {
            "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True, "rope": True}},
            "W": {"mixer": {"type": "sliding_window", "window": 6, "heads": 2}, "norms": "sandwich"},
            "S": {"mixer": {"type": "s4", "d_state": 4}, "norms": "sandwich"},
            "M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 8, "n_groups": 2, "gated_norm": False}},
            "Z": {"mixer": {"type": "attention", "heads": 4, "rope": False}, "input": "concat_embeddings"},
        },
        "tie_embeddings": True,
        "residual_in_fp32": True,
    },
    "experts": {
        **SIZES,
        "pattern": "mL-m{mlp: gelu}A",
        "blocks": {
            "m": {"mixer": {"type": "mamba", "select": ["dt", "C"], "discretization": "zoh"}, "mlp": MOE},
            "L": {"mixer": {"type": "mla", "q_rank": 8, "kv_rank": 8}, "mlp": SIGMOID},
            "A": {"mixer": {"type": "attention", "head_dim": 12, "heads": 3, "kv_heads": 1}, "mlp": "none"},
        },
        "norm": "layernorm",
        "norms": "sandwich",
        "norm_eps": 1e-3,
    },
}


def built(spec: dict[str, Any], seed: int = 0) -> hl.HybridLM:
    """A model with every parameter and buffer random, ready to answer."""
    model = hl.build(spec, seed=seed)
    randomise(model, seed)
    for buffer in model.buffers():
        buffer.normal_(generator=torch.Generator().manual_seed(seed))
    return model.eval()


def exported(model: hl.HybridLM, folder: Path) -> Any:
    """What transformers makes of its export."""
    write_remote(model, folder)
    return opened(folder)


def opened(folder: Path, **how: Any) -> Any:
    """The model in a folder, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **how).eval()


class Pair:
    """A model and what transformers makes of its export."""

    def __init__(self, spec: dict[str, Any], folder: Path):
        self.folder, self.ours = folder, built(spec)
        self.theirs = exported(self.ours, folder)


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids."""
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
