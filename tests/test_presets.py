"""Presets: the published shapes have the published numbers of parameters; the small ones are alike, learn and decode.

docs/presets.md is the one list of them. Its numbers are computed anew, and held against transformers' own classes on
the meta device, built from the published configs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf

import hybridlm as hl
from hybridlm import cli
from hybridlm.compose.cost import model_cost
from hybridlm.compose.options import Ranks
from hybridlm.compose.part import Part
from hybridlm.compose.plan import LayerPlan, plan
from hybridlm.registry import mixers

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "configs/models"
PAGE = (ROOT / "docs/presets.md").read_text(encoding="utf-8")
OTHERS = {"tiny", "demo", "signals", "recall"}  # models of the quickstart and of examples, beside those of mixers
WITHIN = 0.01


def _table(first_column: str, second_column: str) -> dict[str, list[str]]:
    """The rows of one table of the page: name in the first column -> the other cells."""
    (table,) = re.findall(rf"^\| {first_column} \| {second_column} .*\n\|-.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [[cell.strip().strip("`") for cell in line.strip("|\n").split("|")] for line in table.splitlines(True)]
    return {name: cells for name, *cells in rows}


FULL = _table("preset", "published")
TINY = {name: cells[0] for name, cells in _table("preset", "tiny").items()}


def _layer_types(layers: int, attention: set[int]) -> list[str]:
    return ["full_attention" if i in attention else "linear_attention" for i in range(layers)]


NEMOTRON = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
THEIRS = {  # class, and what the published config.json says otherwise than the class does by default
    "llama-2-7b": ("Llama", {"intermediate_size": 11008}),
    "mamba-2.8b": ("Mamba", {"hidden_size": 2560, "num_hidden_layers": 64, "time_step_rank": 160}),
    "mamba2-2.7b": (
        "Mamba2",
        {"hidden_size": 2560, "num_heads": 80, "n_groups": 1, "vocab_size": 50288, "tie_word_embeddings": True},
    ),
    "jamba-v0.1": ("Jamba", {}),
    "zamba2-2.7b": ("Zamba2", {"n_mamba_heads": 80, "num_mem_blocks": 2}),
    "nemotron-h-8b": ("NemotronH", {"hybrid_override_pattern": NEMOTRON}),
    "falcon-h1-7b": (
        "FalconH1",
        {
            "hidden_size": 3072, "vocab_size": 130048, "num_hidden_layers": 44, "intermediate_size": 12288,
            "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128, "mamba_d_ssm": 3072,
            "mamba_n_heads": 24, "mamba_d_head": 128, "mamba_rms_norm": True,
        },
    ),
    "bamba-9b": ("Bamba", {"vocab_size": 128256, "attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}),
    "granite-4.0-h-small": (
        "GraniteMoeHybrid",
        {
            "vocab_size": 100352, "num_hidden_layers": 40, "layer_types": _layer_types(40, {5, 15, 25, 35}),
            "intermediate_size": 768, "shared_intermediate_size": 1536, "num_local_experts": 72,
            "num_experts_per_tok": 10, "num_key_value_heads": 8, "mamba_d_state": 128, "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
MORE = {"zamba2-2.7b": 9 * 2560 * 128}  # ours has a second matrix A at each place: gate and up do not share one


def spec(name: str) -> hl.ModelSpec:
    return hl.ModelSpec.read(MODELS / f"{name}.yaml")


# ---------------------------------------------------------------------------------------------------------------- page
def test_every_file_is_on_the_page_or_elsewhere():
    """A preset in the table; an example of a mixer, which its page shows; or a model of the quickstart."""
    there = {path.stem for path in MODELS.iterdir()}
    assert set(FULL) == set(TINY)
    presets = {*FULL, *TINY.values()}
    assert presets <= there
    assert there - presets <= {*mixers.names(), *OTHERS}


@pytest.mark.parametrize("name", FULL)
def test_page_and_file_say_the_same(name):
    """The pattern, as far as it is told, and in the file's comment the published number."""
    told = re.sub(r"<.*?>", "", _cells(name)[1]).replace("&lt;", "<").replace("&gt;", ">").replace("&#124;", "|")
    pattern = spec(name).pattern.replace(" ", "")
    assert pattern.startswith(told.removesuffix("...")) if told.endswith("...") else pattern == told
    comment = re.match(r"(#.*\n)+", (MODELS / f"{name}.yaml").read_text(encoding="utf-8"))[0]
    assert abs(_number(re.search(r"([\d.]+ [BM]) parameters", comment)[1]) / _published(name) - 1) < 0.005
    assert f"# {name}.yaml, small" in (MODELS / f"{TINY[name]}.yaml").read_text(encoding="utf-8")


def _cells(name: str) -> list[str]:
    return _table("preset", "tiny")[name]


def _number(text: str) -> float:
    """ "6.74 B" or "126,387,456"."""
    value, _, unit = text.replace(",", "").partition(" ")
    return float(value) * {"": 1, "M": 1e6, "B": 1e9}[unit]


def _published(name: str) -> float:
    return _number(re.fullmatch(r"\[(.*)\]\(https://.*\)", FULL[name][0])[1])


# -------------------------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize("name", FULL)
def test_describe_gives_the_published_count(name, capsys):
    """By its name alone, within 1%, at once: the largest would need 206 GB if anything were allocated."""
    start = time.perf_counter()
    assert cli.main(["describe", name, "--json"]) == 0
    assert time.perf_counter() - start < 6
    ours = json.loads(capsys.readouterr().out)["parameters"]["total"]
    _, shown, difference, _ = FULL[name]
    assert shown == f"{ours:,}"
    assert difference == f"{ours / _published(name) - 1:+.2%}"
    assert abs(ours / _published(name) - 1) <= WITHIN


@pytest.mark.parametrize("name", FULL)
def test_transformers_counts_the_same(name):
    ours, shown = int(FULL[name][1].replace(",", "")), FULL[name][3]
    if name not in THEIRS:
        assert shown == "no class"
        return
    family, config = THEIRS[name]
    with torch.device("meta"):
        model = getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**config))
    theirs = sum(parameter.numel() for parameter in model.parameters())
    assert shown == f"{theirs:,}"
    assert ours - theirs == MORE.get(name, 0)


def test_h3_lacks_what_the_page_says():
    """With the B of each shift and the biases of attention and MLPs, ours is theirs to the last parameter."""
    width, layers = 768, 12
    ours = int(FULL["h3-hybrid-125m"][1].replace(",", ""))
    assert ours + (layers - 1) * 64 * width + 4 * width + layers * (4 + 1) * width == _published("h3-hybrid-125m")


def test_parameters_that_a_token_uses():
    told = re.findall(r"([\d,]+)(?: parameters)? of\s`(.*?)` \((\d+) B published", PAGE)
    assert {name for _, name, _ in told} == {"jamba-v0.1", "granite-4.0-h-small"}
    for count, name, published in told:
        active = model_cost(spec(name)).active
        assert count == f"{active:,}"
        assert round(active / 1e9) == int(published)


# ------------------------------------------------------------------------------------------------------------ topology
def _choices(part: Part | None) -> tuple:
    """What a part is, and what its config chooses; of a number only whether it is more than 1."""
    if part is None:
        return ()
    fields = dataclasses.asdict(part.config)
    chosen = {
        name: value if isinstance(value, bool | str | tuple | None) else value > 1 for name, value in fields.items()
    }
    return part.type, *chosen.items()


def _kind(layer: LayerPlan, labels: dict[str | None, int]) -> tuple:
    """A layer without its sizes. A label is known by the order of its first use."""
    ranks = layer.options.low_rank or Ranks()
    options = dataclasses.replace(layer.options, low_rank=Ranks(bool(ranks.mixer), bool(ranks.mlp)))
    label = labels.setdefault(layer.label, len(labels))
    return *map(_choices, layer.mixers), _choices(layer.mlp), layer.combine, label, options


def topology(model: hl.ModelSpec) -> tuple[list, set, tuple]:
    """The order of kinds, repetitions left out; which kind follows which; what holds for the model as a whole."""
    labels = {None: 0}
    kinds = [_kind(layer, labels) for layer in plan(model).layers]
    order = [kind for kind, _ in itertools.groupby(kinds)]
    whole = (kinds[-1], model.norm, model.norms, model.norm_eps, model.tie_embeddings, model.residual_in_fp32)
    return order, set(itertools.pairwise(kinds)), whole


def alike(tiny: hl.ModelSpec, full: hl.ModelSpec) -> bool:
    """The tiny one begins and ends as the full one, and has whatever follows on anything there."""
    (start, *mine), (order, *theirs) = topology(tiny), topology(full)
    return mine == theirs and start == order[: len(start)]


@pytest.mark.parametrize("name", FULL)
def test_tiny_is_alike(name):
    tiny = spec(TINY[name])
    assert [other for other in FULL if alike(tiny, spec(other))] == [name]
    assert tiny.d_model <= 128
    assert sum(part.numel() for part in hl.build(tiny, device="meta").parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("jamba-v0.1", {"pattern": "ememAmem"}),
        ("jamba-v0.1", {"pattern": "memeAmem"}),
        ("jamba-v0.1", {"tie_embeddings": True}),
        ("zamba2-2.7b", {"pattern": "M2 Z@one M2 Z@one M2 Z@two M2"}),
        ("zamba2-2.7b", {"pattern": "M2 Z@one M2 Z@two{low_rank: 0} M2 Z@one M2"}),
        ("nemotron-h-8b", {"notation": None, "pattern": "M- MA- M-", "mlp": "gelu"}),
    ],
)
def test_differences_are_seen(name, change):
    """Order, kinds, sharing, corrections, ties; a width is none."""
    tiny = spec(TINY[name])
    assert alike(dataclasses.replace(tiny, d_model=32), spec(name))
    assert not alike(dataclasses.replace(tiny, **change), spec(name))


# ------------------------------------------------------------------------------------------------------------ the tiny
@cache
@torch.enable_grad()  # whoever asks first
def trained(name: str) -> tuple[hl.HybridLM, list[float]]:
    """A tiny one after eight steps on a row of text, and the loss before each."""
    model = hl.build(spec(name), seed=0, dtype=torch.float64).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids, losses = torch.tensor([list(b"the state of a model is what it keeps of what it read")]), []
    for _ in range(8):
        loss = model(ids[:, :-1], targets=ids[:, 1:]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), losses


@pytest.mark.parametrize("name", TINY.values())
def test_tiny_learns(name):
    _, losses = trained(name)
    assert losses[1] < losses[0]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", TINY.values())
@torch.no_grad()
def test_tiny_decodes_what_it_computes_at_once(name):
    """A prefill, several tokens more, then one by one, past the end of every window."""
    model, _ = trained(name)
    ids = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    state, logits = model.init_state(2, 40, dtype=torch.float64), []
    for part in ids.split([11, 5, *[1] * 24], dim=1):
        out = model(part, state)
        state = out.state
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids).logits, rtol=1e-10, atol=1e-10)
