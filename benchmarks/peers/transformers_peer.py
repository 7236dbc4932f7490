"""transformers: NemotronHForCausalLM, the class whose layers are Mamba-2 and attention with no MLP of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.architecture import CONV, EPS, EXPAND, Architecture
from benchmarks.peers import Peer, require_layers, require_same_size
from hybridlm.ops import backend

ENDS = {"embed.": "model.embeddings.", "final_norm.": "model.norm_f.", "blocks.": "model.layers."}
MODULE = "transformers.models.nemotron_h.modeling_nemotron_h"
KERNELS = ("causal_conv1d_fn", "causal_conv1d_update", "mamba2_chunk_scan", "mamba2_selective_state_update")
FASTEST = 256
"""Tokens of a chunk at which mamba_ssm's kernels, which it calls on a GPU, are fastest."""
KINDS = {"mamba2": "linear_attention", "attention": "full_attention"}


def missing() -> str | None:
    """Why it cannot take part."""
    return backend.missing(MODULE, "NemotronHForCausalLM")


def build(
    architecture: Architecture, weights: dict[str, Tensor], device: str, dtype: torch.dtype, shipped: bool = False
) -> Peer:
    """Their model with our weights, its output matrix tied by hand, which its configuration does not do.

    shipped: not tied, and in chunks of its own length.
    """
    require_layers("transformers", architecture.types)
    chunk = {} if shipped or not device.startswith("cuda") else {"chunk_size": FASTEST}
    with torch.device(device):
        model = backend.found(MODULE, "NemotronHForCausalLM")(_config(architecture, chunk)).to(dtype)
    theirs = _renamed(weights)
    model.load_state_dict(theirs | {"lm_head.weight": theirs["model.embeddings.weight"]})
    if not shipped:
        model.lm_head.weight = model.model.embeddings.weight
    for module in model.modules():
        if "time_step_limit" in vars(module):
            module.time_step_limit = (0.0, float("inf"))  # as trained by the others: no bound on dt
    peer = Peer(
        model,
        loss=lambda ids, targets: model(ids, labels=ids, use_cache=False).loss,  # it shifts them itself
        logits=lambda ids: model(ids, use_cache=False).logits,
        prefill=lambda ids: model(ids, use_cache=True, logits_to_keep=1).logits[:, -1],
        generate=lambda ids, new: model.generate(ids, max_new_tokens=new, do_sample=False, use_cache=True),
        label=_path(device),
        notes=_differences(model.config, shipped),
    )
    tied = architecture.cost.parameters + shipped * architecture.vocab_size * architecture.d_model
    require_same_size("transformers", peer.parameters, tied)
    return peer


def _differences(config, shipped: bool) -> list[str]:
    """In what it is not ours, or not as it ships."""
    if shipped:
        return [f"as it ships: embeddings not tied, chunks of {config.chunk_size}"]
    return ["embeddings tied by hand"] + ([f"chunks of {FASTEST}"] if config.chunk_size == FASTEST else [])


def _config(a: Architecture, chunk: dict[str, int]):
    return backend.found("transformers", "NemotronHConfig")(
        vocab_size=a.vocab_size,
        hidden_size=a.d_model,
        layers_block_type=[KINDS[kind] for kind in a.types],
        num_attention_heads=a.heads,
        num_key_value_heads=a.heads,
        head_dim=a.head_dim,
        ssm_state_size=a.d_state,
        mamba_num_heads=a.ssm_heads,
        mamba_head_dim=a.head_dim,
        n_groups=1,
        expand=EXPAND,
        conv_kernel=CONV,
        **chunk,
        layer_norm_epsilon=EPS,
        max_position_embeddings=1 << 20,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names."""
    found = {}
    for name, tensor in weights.items():
        ours = next(prefix for prefix in ENDS if name.startswith(prefix))
        found[ENDS[ours] + name.removeprefix(ours)] = tensor
    return found


def _path(device: str) -> str:
    """Whether its kernels are in place: each of its functions knows whether it was replaced by a package's."""
    if not device.startswith("cuda"):
        return "CPU path"
    slow = [name for name in KERNELS if not _replaced(backend.found(MODULE, name))]
    return f"slow path: no {', '.join(slow)}" if slow else "fast path"


def _replaced(function, depth: int = 3) -> bool:
    """The flag in the closure of transformers' `use_kernel_func_from_hub_with_fallback`, however it is wrapped."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if "is_new_implementation" in cells:
        return bool(cells["is_new_implementation"].cell_contents)
    inner = [cell.cell_contents for cell in cells.values()] if depth else []
    return any(_replaced(other, depth - 1) for other in inner if hasattr(other, "__code__"))
