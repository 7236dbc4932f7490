"""mamba_ssm: MambaLMHeadModel with Mamba-2 and its MHA, as it ships: residual in float32, fused add and norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.architecture import CONV, EXPAND, Architecture
from benchmarks.peers import Peer, require_layers, require_same_size
from hybridlm.ops import backend

ENDS = {"embed.weight": "backbone.embedding.weight", "final_norm.weight": "backbone.norm_f.weight"}
KERNELS = {
    "causal_conv1d_fn": "mamba_ssm.modules.mamba2",
    "causal_conv1d_update": "mamba_ssm.modules.mamba2",
    "selective_state_update": "mamba_ssm.modules.mamba2",
    "flash_attn_with_kvcache": "mamba_ssm.modules.mha",
    "RMSNorm": "mamba_ssm.models.mixer_seq_simple",
}


def missing() -> str | None:
    """Why it cannot take part."""
    return backend.missing("mamba_ssm.models.mixer_seq_simple", "MambaLMHeadModel")


def build(architecture: Architecture, weights: dict[str, Tensor], device: str, dtype: torch.dtype) -> Peer:
    """Their model with our weights."""
    require_layers("mamba_ssm", architecture.types)
    model = backend.found("mamba_ssm.models.mixer_seq_simple", "MambaLMHeadModel")(
        _config(architecture), device=device, dtype=dtype
    )
    theirs = _renamed(architecture, weights)
    model.load_state_dict(theirs | {"lm_head.weight": theirs["backbone.embedding.weight"]})
    model.tie_weights()
    slow = [name for name, module in KERNELS.items() if backend.missing(module, name)]
    graph = device.startswith("cuda")
    peer = Peer(
        model,
        loss=lambda ids, targets: F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()),
        logits=lambda ids: model(ids).logits,
        prefill=lambda ids: _prefill(model, ids),
        generate=lambda ids, new: model.generate(ids, max_length=ids.shape[1] + new, cg=graph),
        label=f"slow path: no {', '.join(slow)}" if slow else "fast path",
    )
    require_same_size("mamba_ssm", peer.parameters, architecture.cost.parameters)
    return peer


def _config(a: Architecture):
    attention = {"num_heads": a.heads, "head_dim": a.head_dim, "causal": True, "rotary_emb_dim": 0}
    return backend.found("mamba_ssm.models.config_mamba", "MambaConfig")(
        d_model=a.d_model,
        d_intermediate=0,
        n_layer=len(a.types),
        vocab_size=a.vocab_size,
        ssm_cfg={"layer": "Mamba2", "d_state": a.d_state, "headdim": a.head_dim, "expand": EXPAND, "d_conv": CONV},
        attn_layer_idx=[i for i, kind in enumerate(a.types) if kind == "attention"],
        attn_cfg={**attention, "qkv_proj_bias": False, "out_proj_bias": False},
        pad_vocab_size_multiple=1,
        tie_embeddings=True,
    )


def _prefill(model, ids: Tensor) -> Tensor:
    params = backend.found("mamba_ssm.utils.generation", "InferenceParams")
    inference = params(max_seqlen=ids.shape[1] + 1, max_batch_size=ids.shape[0])
    return model(ids, inference_params=inference, num_last_tokens=1).logits[:, -1]


def _renamed(architecture: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names: attention's three projections are one matrix there."""
    found = {theirs: weights[ours] for ours, theirs in ENDS.items()}
    for i, kind in enumerate(architecture.types):
        ours, theirs = f"blocks.{i}.", f"backbone.layers.{i}."
        mine = {name.removeprefix(ours): tensor for name, tensor in weights.items() if name.startswith(ours)}
        if kind == "attention":
            qkv = torch.cat([mine.pop(f"mixer.{part}_proj.weight") for part in "qkv"])
            mine |= {"mixer.in_proj.weight": qkv, "mixer.out_proj.weight": mine.pop("mixer.o_proj.weight")}
        found |= {theirs + name: tensor for name, tensor in mine.items()}
    return found
