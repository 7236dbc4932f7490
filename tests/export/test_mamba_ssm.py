"""mamba_ssm's checkpoints, against its equations written as loops in float64, and against transformers' Mamba."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import hybridlm as hl
from hybridlm.compose.plan import plan
from hybridlm.errors import CheckpointError, ExportError, PatternError, SpecError
from hybridlm.export.family import source
from hybridlm.export.fields import Fields
from hybridlm.export.lift import lift
from hybridlm.export.proof import LIMIT, worst
from tests.export.common import DEEP, SHALLOW, D, random_values
from tests.export.test_import_matrix import JUNK

WORDS = 61
IDS = torch.randint(WORDS, (2, 19), generator=torch.Generator().manual_seed(3))
HEADS = {"num_heads": 4, "num_heads_kv": 2, "causal": True, "qkv_proj_bias": False, "out_proj_bias": False}


def drawn_config(draw: Random) -> dict:
    """What its save_pretrained writes."""
    depth, ssm = draw.randint(1, 4), draw.choice(["Mamba1", "Mamba2", None])
    sizes = {"d_state": draw.choice([3, 5]), "d_conv": draw.choice([2, 3, 4]), "expand": draw.choice([1, 2])}
    if ssm == "Mamba2":
        sizes |= {"headdim": draw.choice([4, 8]), "ngroups": draw.choice([1, 2]), "rmsnorm": draw.choice([True, False])}
        sizes |= {} if sizes["rmsnorm"] else {"norm_before_gate": True}  # of a norm that is not there
    else:
        sizes |= {"dt_rank": draw.choice([3, "auto"])}
    width = draw.choice([6, 8])
    return {
        "d_model": D,
        "n_layer": depth,
        "d_intermediate": draw.choice([0, 100]),
        "vocab_size": WORDS,
        "ssm_cfg": {**({"layer": ssm} if ssm else {}), **sizes},
        "attn_layer_idx": [i for i in range(depth) if draw.random() < 0.4],
        "attn_cfg": {**HEADS, "head_dim": width, "rotary_emb_dim": draw.choice([0, width])},
        "rms_norm": draw.choice([True, False]),
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": draw.choice([1, 8, 16]),
        "tie_embeddings": draw.choice([True, False]),
    }


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of its state_dict."""
    ssm, attention = config["ssm_cfg"], config["attn_cfg"]
    inner, n, k = ssm["expand"] * D, ssm["d_state"], ssm["d_conv"]
    rank = -(-D // 16) if ssm.get("dt_rank") == "auto" else ssm.get("dt_rank", 0)
    words = -(-WORDS // config["pad_vocab_size_multiple"]) * config["pad_vocab_size_multiple"]
    mlp = -(-config["d_intermediate"] // 128) * 128
    kinds = ("weight",) if config["rms_norm"] else ("weight", "bias")
    selective = {
        "A_log": (inner, n), "D": (inner,), "in_proj.weight": (2 * inner, D), "conv1d.weight": (inner, 1, k),
        "conv1d.bias": (inner,), "x_proj.weight": (rank + 2 * n, inner), "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,), "out_proj.weight": (D, inner),
    }  # fmt: skip
    if ssm.get("layer") == "Mamba2":
        heads, channels = inner // ssm["headdim"], inner + 2 * ssm["ngroups"] * n
        selective = {
            "A_log": (heads,), "D": (heads,), "dt_bias": (heads,), "in_proj.weight": (inner + channels + heads, D),
            "conv1d.weight": (channels, 1, k), "conv1d.bias": (channels,), "out_proj.weight": (D, inner),
            **({"norm.weight": (inner,)} if ssm["rmsnorm"] else {}),
        }  # fmt: skip
    p = attention["head_dim"]
    heads = {"in_proj.weight": (p * (4 + 2 * 2), D), "out_proj.weight": (D, 4 * p)}
    found = {
        "backbone.embedding.weight": (words, D),
        **{f"backbone.norm_f.{kind}": (D,) for kind in kinds},
        "lm_head.weight": (words, D),
    }
    for i in range(config["n_layer"]):
        mixer = heads if i in config["attn_layer_idx"] else selective
        found |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        found |= {f"backbone.layers.{i}.norm.{kind}": (D,) for kind in kinds}
        if mlp:
            gated = {"fc1.weight": (2 * mlp, D), "fc2.weight": (D, mlp)}
            found |= {f"backbone.layers.{i}.mlp.{name}": shape for name, shape in gated.items()}
            found |= {f"backbone.layers.{i}.norm2.{kind}": (D,) for kind in kinds}
    return found


def random_tensors(config: dict, number: int) -> dict[str, Tensor]:
    """A state_dict, in which a tied output stands twice."""
    drawn = torch.Generator().manual_seed(number)
    found = {name: random_values(name, shape, drawn) for name, shape in shapes(config).items()}
    if config["tie_embeddings"]:
        found["lm_head.weight"] = found["backbone.embedding.weight"]
    return found


def saved(config: dict, tensors: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


# ------------------------------------------------------------------------------------------------ its equations, looped
def logits(config: dict, tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The model, token by token in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    x = w["backbone.embedding.weight"][ids]
    for i in range(config["n_layer"]):
        at = f"backbone.layers.{i}."
        mixer = {name.removeprefix(f"{at}mixer."): t for name, t in w.items() if name.startswith(f"{at}mixer.")}
        if i in config["attn_layer_idx"]:
            step = attend
        else:
            step = matrix if config["ssm_cfg"].get("layer") == "Mamba2" else selective
        x = x + step(config, mixer, normed(w, f"{at}norm", x))
        if config["d_intermediate"]:
            up, gate = (normed(w, f"{at}norm2", x) @ w[f"{at}mlp.fc1.weight"].T).chunk(2, dim=-1)
            x = x + (up * F.silu(gate)) @ w[f"{at}mlp.fc2.weight"].T
    return normed(w, "backbone.norm_f", x) @ w["lm_head.weight"].T


def normed(w: dict, name: str, x: Tensor) -> Tensor:
    if f"{name}.bias" in w:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]


def convolved(w: dict, x: Tensor) -> Tensor:
    k = w["conv1d.weight"].shape[-1]
    past = F.pad(x, (0, 0, k - 1, 0))
    taps = [past[:, j : j + x.shape[1]] * w["conv1d.weight"][:, 0, j] for j in range(k)]
    return F.silu(sum(taps) + w["conv1d.bias"])


def selective(config: dict, w: dict, u: Tensor) -> Tensor:
    n, A = w["A_log"].shape[1], -w["A_log"].exp()
    x, z = (u @ w["in_proj.weight"].T).chunk(2, dim=-1)
    x = convolved(w, x)
    low, B, C = (x @ w["x_proj.weight"].T).split([w["dt_proj.weight"].shape[1], n, n], dim=-1)
    dt = F.softplus(low @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    h, y = x.new_zeros(len(x), *A.shape), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        y.append((h * C[:, t, None]).sum(-1) + w["D"] * x[:, t])
    return (torch.stack(y, 1) * F.silu(z)) @ w["out_proj.weight"].T


def matrix(config: dict, w: dict, u: Tensor) -> Tensor:
    ssm, heads = config["ssm_cfg"], len(w["D"])
    inner, groups, n = heads * ssm["headdim"], ssm["ngroups"], ssm["d_state"]
    z, xBC, dt = (u @ w["in_proj.weight"].T).split([inner, inner + 2 * groups * n, heads], dim=-1)
    x, B, C = convolved(w, xBC).split([inner, groups * n, groups * n], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    B, C = (one.unflatten(-1, (groups, n)).repeat_interleave(heads // groups, dim=2) for one in (B, C))
    dt, A = F.softplus(dt + w["dt_bias"]), -w["A_log"].exp()
    h, y = x.new_zeros(*x.shape[::2], x.shape[3], n), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t] * A)[..., None, None] * h
        h = h + dt[:, t, :, None, None] * x[:, t, ..., None] * B[:, t, :, None]
        y.append((h * C[:, t, :, None]).sum(-1) + w["D"][:, None] * x[:, t])
    y = torch.stack(y, 1).flatten(2) * F.silu(z)
    if "norm.weight" in w:
        parts = y.unflatten(-1, (groups, -1))
        y = (parts * (parts.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).flatten(2) * w["norm.weight"]
    return y @ w["out_proj.weight"].T


def attend(config: dict, w: dict, u: Tensor) -> Tensor:
    p, rotary = config["attn_cfg"]["head_dim"], config["attn_cfg"]["rotary_emb_dim"]
    q, k, v = (u @ w["in_proj.weight"].T).split([4 * p, 2 * p, 2 * p], dim=-1)
    q, k, v = (one.unflatten(-1, (-1, p)).transpose(1, 2) for one in (q, k, v))
    if rotary:
        angle = torch.arange(u.shape[1]).double()[:, None] * 10000.0 ** (-torch.arange(0, p, 2).double() / p)
        q, k = turned(q, angle), turned(k, angle)
    k, v = (one.repeat_interleave(2, dim=1) for one in (k, v))
    scores = (q @ k.transpose(2, 3)) * p**-0.5
    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w["out_proj.weight"].T


def turned(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


# ---------------------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize(
    "number", [pytest.param(i, marks=() if i < 2 * SHALLOW else pytest.mark.deep) for i in range(2 * DEEP)]
)
def test_same_logits_as_the_equations(number, tmp_path):
    config = drawn_config(Random(number))
    tensors = random_tensors(config, number)
    lift(saved(config, tensors, tmp_path / "theirs"), tmp_path / "ours")
    with torch.no_grad():
        found = hl.load(tmp_path / "ours").eval()(IDS).logits
    assert worst(found, logits(config, tensors, IDS).float()) <= LIMIT


def as_transformers_has_it(config: dict, tensors: dict[str, Tensor]) -> torch.nn.Module:
    """Mamba or Mamba-2 of transformers, with the same weights."""
    ssm, second = config["ssm_cfg"], config["ssm_cfg"].get("layer") == "Mamba2"
    sizes = {"state_size": ssm["d_state"], "conv_kernel": ssm["d_conv"], "expand": ssm["expand"]}
    sizes |= {"hidden_size": D, "num_hidden_layers": config["n_layer"], "vocab_size": len(tensors["lm_head.weight"])}
    sizes |= {"tie_word_embeddings": config["tie_embeddings"]}
    if second:
        heads = ssm["expand"] * D // ssm["headdim"]
        sizes |= {"num_heads": heads, "head_dim": ssm["headdim"], "n_groups": ssm["ngroups"], "chunk_size": 8}
    else:
        sizes |= {"time_step_rank": ssm["dt_rank"]}
    name = "Mamba2" if second else "Mamba"
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes))
    model.load_state_dict({name.replace("embedding.", "embeddings."): tensor for name, tensor in tensors.items()})
    return model.eval()


@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_same_logits_as_transformers(layer, tmp_path):
    config = drawn_config(Random(1)) | {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True}
    sizes = {"headdim": 8, "ngroups": 2, "rmsnorm": True} if layer == "Mamba2" else {"dt_rank": 3}
    config["ssm_cfg"] = {"layer": layer, "d_state": 5, "d_conv": 4, "expand": 2, **sizes}
    tensors = random_tensors(config, 0)
    lift(saved(config, tensors, tmp_path / "theirs"), tmp_path / "ours")
    with torch.no_grad():
        found = hl.load(tmp_path / "ours").eval()(IDS).logits
        assert worst(found, as_transformers_has_it(config, tensors)(IDS, use_cache=False).logits) <= LIMIT


HYBRID = {
    "d_model": D, "n_layer": 3, "d_intermediate": 100, "vocab_size": WORDS, "attn_layer_idx": [1],
    "ssm_cfg": {"layer": "Mamba2", "d_state": 5, "d_conv": 4, "expand": 2, "headdim": 8, "ngroups": 2, "rmsnorm": True},
    "attn_cfg": {**HEADS, "head_dim": 8, "rotary_emb_dim": 8}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": True,
}  # fmt: skip


def test_every_tensor_counts(tmp_path):
    """Entries that stand in other places give other logits."""
    tensors = random_tensors(HYBRID, 0)
    lift(saved(HYBRID, tensors, tmp_path / "theirs"), tmp_path / "ours")
    with torch.no_grad():
        found = hl.load(tmp_path / "ours").eval()(IDS).logits
    for name, tensor in tensors.items():
        if name not in ("lm_head.weight", "backbone.embedding.weight"):
            moved = {**tensors, name: tensor.flatten().roll(1).view_as(tensor)}
            assert worst(found, logits(HYBRID, moved, IDS).float()) > 100 * LIMIT


def test_attention_under_the_other_name(tmp_path):
    tensors = random_tensors(HYBRID, 0)
    lift(saved(HYBRID, tensors, tmp_path / "one"), tmp_path / "ours")
    name = "backbone.layers.1.mixer.in_proj.weight"
    tensors = {(name.replace("in_proj", "Wqkv") if one == name else one): t for one, t in tensors.items()}
    lift(saved(HYBRID, tensors, tmp_path / "two"), tmp_path / "again")
    assert torch.equal(hl.load(tmp_path / "ours").eval()(IDS).logits, hl.load(tmp_path / "again").eval()(IDS).logits)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("", "ssm_config", {}),
        ("", "attn_layer_idx", [3]),
        ("", "attn_layer_idx", ["1"]),
        ("", "rms_norm", "yes"),
        ("", "n_layer", "3"),
        ("ssm_cfg", "layer", "Mamba3"),
        ("ssm_cfg", "bias", True),
        ("ssm_cfg", "conv_bias", False),
        ("ssm_cfg", "D_has_hdim", True),
        ("ssm_cfg", "norm_before_gate", True),
        ("ssm_cfg", "d_ssm", 32),
        ("ssm_cfg", "dt_limit", [0.001, 0.1]),
        ("ssm_cfg", "dt_rank", 3),
        ("ssm_cfg", "n_groups", 2),
        ("attn_cfg", "causal", False),
        ("attn_cfg", "causal", None),
        ("attn_cfg", "qkv_proj_bias", None),
        ("attn_cfg", "out_proj_bias", True),
        ("attn_cfg", "mlp_dim", 256),
        ("attn_cfg", "d_conv", 4),
        ("attn_cfg", "rotary_emb_dim", 4),
        ("attn_cfg", "rotary_emb_interleaved", True),
        ("attn_cfg", "softmax_scale", 1.0),
        ("attn_cfg", "num_heads", None),
        ("attn_cfg", "window", 8),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(where, field, value, tmp_path):
    config = {**HYBRID, where: {**HYBRID[where], field: value}} if where else {**HYBRID, field: value}
    theirs = saved(config, random_tensors(HYBRID, 0), tmp_path / "theirs")
    with pytest.raises(ExportError, match=f"{where}.{field}" if where else field):
        lift(theirs, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_junk_in_any_field_is_read_or_refused():
    places = [((), name) for name in HYBRID] + [
        ((part,), name) for part in ("ssm_cfg", "attn_cfg") for name in HYBRID[part]
    ]
    for where, name in places:
        for junk in JUNK:
            config = json.loads(json.dumps(HYBRID))
            (config[where[0]] if where else config)[name] = junk
            try:
                plan(source("mamba_ssm").spec(Fields(config, "config.json")))
            except (ExportError, SpecError, PatternError):
                continue
            except Exception as error:
                raise AssertionError(f"{where} {name}: {junk!r}") from error


@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen", "untied"])
def test_tensors_that_do_not_fit_are_refused(damage, tmp_path):
    tensors, name = random_tensors(HYBRID, 0), "backbone.layers.2.mixer.dt_bias"
    if damage == "untied":
        name = "lm_head.weight"
        tensors[name] = tensors[name] + 1
    elif damage == "missing":
        tensors.pop(name)
    elif damage == "surplus":
        name = "backbone.layers.2.mixer.dt_byas"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(3)
    theirs = saved(HYBRID, tensors, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=name):
        lift(theirs, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_first_checkpoints_say_little(tmp_path):
    """Those of the Hub from before Mamba-2 name neither ties nor MLPs nor attention."""
    config = {
        "d_model": D,
        "n_layer": 1,
        "vocab_size": WORDS,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
    }
    whole = {**config, "d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": HEADS | {"head_dim": 8}}
    whole |= {"ssm_cfg": {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"}, "tie_embeddings": True}
    whole |= {"pad_vocab_size_multiple": 8}
    tensors = random_tensors(whole, 0)
    spec = lift(saved(config, tensors, tmp_path / "theirs"), tmp_path / "ours")
    assert (spec.vocab_size, spec.tie_embeddings, spec.residual_in_fp32) == (64, True, True)
    with torch.no_grad():
        assert worst(hl.load(tmp_path / "ours").eval()(IDS).logits, logits(whole, tensors, IDS).float()) <= LIMIT


def test_it_is_not_written(tmp_path):
    from hybridlm.export.lower import lower

    with pytest.raises(ExportError, match="read, and never written"):
        lower(hl.build(pattern="m", d_model=D, vocab_size=WORDS, mlp="none"), tmp_path / "out", "mamba_ssm")
