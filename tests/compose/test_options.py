"""What a block says besides its mixer and MLP: sandwich norms, a wider input, another way out, low-rank corrections."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.compose.options import WORDS
from hybridlm.compose.plan import plan
from hybridlm.compose.shared import Corrected
from hybridlm.errors import SpecError
from hybridlm.ops import backend
from hybridlm.registry import mixers, mlps
from hybridlm.testing.patterns import alphabet
from hybridlm.testing.subject import randomise

IDS = torch.randint(0, 40, (2, 13), generator=torch.Generator().manual_seed(0))
SMALL = {**alphabet(), "A": alphabet()["attention"], "M": alphabet()["mamba2"]}
ZAMBA = {
    **SMALL["attention"],
    "mlp": {"type": "geglu", "width": 24},
    "input": "concat_embeddings",
    "output": "next_mixer",
    "low_rank": 3,
}


def spec_of(pattern: str, blocks: dict | None = None, **keys) -> dict:
    given = {"pattern": pattern, "d_model": 32, "vocab_size": 40, "mlp": {"type": "swiglu", "width": 48}}
    return given | {"blocks": SMALL | (blocks or {})} | keys


def make(pattern: str, blocks: dict | None = None, random: bool = True, **keys) -> hl.HybridLM:
    """A model in float64, every parameter off its first value."""
    model = hl.build(spec_of(pattern, blocks, **keys), dtype=torch.float64, seed=0).eval()
    if random:
        randomise(model, seed=3)
    return model


def embedded(model: hl.HybridLM) -> tuple[torch.Tensor, hl.Context]:
    return model.embed(IDS), hl.Context.of(IDS)


def outputs(model: hl.HybridLM, x: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.final_norm(x))


# ------------------------------------------------------------------------------------------------------------ formulas
def test_sandwich_norms_stand_after_mixer_and_mlp():
    model = make("A", norms="sandwich")
    x, ctx = embedded(model)
    block = model.blocks[0]
    x = x + block.post_norm(block.mixer(block.norm(x), None, ctx)[0])
    x = x + block.mlp_post_norm(block.mlp(block.mlp_norm(x)))
    torch.testing.assert_close(model(IDS).logits, outputs(model, x))


def test_a_mixer_reads_the_embeddings_beside_the_stream():
    model = make("M Z", {"Z": {**SMALL["M"], "input": "concat_embeddings"}})
    e, ctx = embedded(model)
    x, _, _ = model.blocks[0](e, None, ctx)
    block = model.blocks[1]
    x = x + block.mixer(block.norm(torch.cat([x, e], dim=-1)), None, ctx)[0]
    x = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(model(IDS).logits, outputs(model, x))


@pytest.mark.parametrize("pattern", ["M Z A", "M Z@one A", "M Z{mlp: none} A", "M -{output: next_mixer} A"])
def test_a_result_for_the_next_mixer_stays_out_of_the_stream(pattern):
    model = make(pattern, {"Z": {**SMALL["M"], "output": "next_mixer"}})
    x, ctx = embedded(model)
    x, _, _ = model.blocks[0](x, None, ctx)
    place = model.blocks[1]
    block = model.shared["one"] if "@" in pattern else place
    y = block.mixer(block.norm(x), None, ctx)[0] if "Z" in pattern else x
    y = place.proj(y if block.mlp is None else block.mlp(block.mlp_norm(y)))
    after = model.blocks[2]
    x = x + after.mixer(after.norm(x + y), None, ctx)[0]
    x = x + after.mlp(after.mlp_norm(x))
    torch.testing.assert_close(model(IDS).logits, outputs(model, x))


def test_what_went_aside_is_gone_a_layer_later():
    model = make("M{output: next_mixer} A A")
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[3], out[2])))
    model(IDS)
    assert [(given is not None, left is not None) for given, left in seen] == [
        (False, True),
        (True, False),
        (False, False),
    ]


@pytest.mark.parametrize(
    ("pattern", "unshared"),
    [
        ("<A|M>@s{low_rank: 2} A <A|M>@s{low_rank: 3}", "<A|M> A <A|M>"),
        ("A@s M A@s{low_rank: {mlp: 2}}", "A M A"),
        ("W{window: 3}@s W@s{low_rank: {mixer: 4}}", "W{window: 3} W"),
    ],
)
def test_a_correction_is_a_sum_of_matrices(pattern, unshared):
    """The same outputs from an unshared twin whose matrices are W + B A."""
    model, twin = make(pattern, {"W": SMALL["sliding_window"]}), make(unshared, {"W": SMALL["sliding_window"]})
    held, weights, corrected = model.state_dict(), {}, 0
    for name in twin.state_dict():
        weights[name] = held[name].clone() if name in held else held[f"shared.s.{name.split('.', 2)[2]}"].clone()
        if name.startswith("blocks"):
            _, i, path = name.removesuffix(".weight").split(".", 2)
            factors = [held.get(f"blocks.{i}.low_rank.{path}.{factor}.weight") for factor in "BA"]
            if factors[0] is not None:
                weights[name] += factors[0] @ factors[1]
                corrected += 1
    twin.load_state_dict(weights)
    assert corrected == sum(isinstance(module, Corrected) for module in model.modules()) > 1
    torch.testing.assert_close(model(IDS).logits, twin(IDS).logits)


def test_a_correction_begins_as_none():
    plain, corrected = make("A@s M A@s", random=False), make("A@s{low_rank: 4} M A@s{low_rank: 4}", random=False)
    assert torch.equal(plain(IDS).logits, corrected(IDS).logits)
    corrections = [module for module in corrected.modules() if isinstance(module, Corrected)]
    assert all(one.A.weight.std() > 0 and not one.B.weight.any() for one in corrections)
    assert not torch.equal(corrections[0].A.weight, corrections[6].A.weight)  # the same layer at two places


def test_a_correction_leaves_out_what_writes_to_the_stream():
    model = make("A@s{low_rank: {mixer: 4, mlp: 2}}2")
    paths = [name for name, module in model.blocks[0].named_modules() if isinstance(module, Corrected)]
    read = ["mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert paths == [f"low_rank.{path}" for path in read]
    ranks = [model.get_submodule(f"blocks.1.{path}").A.out_features for path in paths]
    assert ranks == [4, 4, 4, 2, 2]


def test_what_hangs_on_shared_layers_acts_under_a_correction():
    """A hook on the shared layer, and a layer put in its place afterwards, as adapters of others do."""
    model, calls = make("A@s{low_rank: 2} A@s"), []
    model.shared["s"].mixer.q_proj.register_forward_hook(lambda *_: calls.append("q"))
    before = model(IDS).logits
    assert calls == ["q", "q"]

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base

        def forward(self, x):
            return 2 * self.base(x)

    twin = copy.deepcopy(model)
    model.shared["s"].mixer.q_proj = Adapted(model.shared["s"].mixer.q_proj)
    with torch.no_grad():
        twin.shared["s"].mixer.q_proj.weight.mul_(2)
    torch.testing.assert_close(model(IDS).logits, twin(IDS).logits)
    assert not torch.allclose(model(IDS).logits, before)


def test_weights_of_one_place_are_its_own_and_follow_it(tmp_path):
    model = make("M Z@one M Z@one{low_rank: {mlp: 1}} M", {"Z": ZAMBA})
    own = [name for name in model.state_dict() if name.startswith(("blocks.1.", "blocks.3."))]
    assert "blocks.1.proj.weight" in own
    assert "blocks.3.proj.weight" in own
    assert "blocks.1.low_rank.mixer.q_proj.A.weight" in own
    assert "blocks.3.low_rank.mixer.q_proj.A.weight" not in own
    assert not any(name.startswith("shared.one.proj") for name in model.state_dict())
    model(IDS, targets=IDS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    hl.save(model, tmp_path)
    assert torch.equal(hl.load(tmp_path).eval()(IDS).logits, model(IDS).logits)
    assert torch.equal(copy.deepcopy(model)(IDS).logits, model(IDS).logits)
    assert model.to(torch.bfloat16)(IDS).logits.dtype == torch.bfloat16


def test_depth_scaling_counts_what_is_added_to_the_stream():
    """Three mixers and three MLPs; what goes to the next mixer is not added."""
    plain, aside = make("M A M", random=False), make("M A M A{output: next_mixer} M{mlp: none}", random=False)
    name = "blocks.0.mixer.out_proj.weight"
    torch.testing.assert_close(aside.state_dict()[name] * (7 / 6) ** 0.5, plain.state_dict()[name])
    adding = make("M A M A M{mlp: none}", random=False)  # nine times, and the place that went aside is one of them
    for end in ("mixer.o_proj.weight", "mlp.down_proj.weight"):
        for at, factor in ((1, (9 / 7) ** 0.5), (3, 9**0.5)):
            name = f"blocks.{at}.{end}"
            torch.testing.assert_close(adding.state_dict()[name] * factor, aside.state_dict()[name])
    shared = make("A@s M A@s{output: next_mixer} M{mlp: none}", random=False).state_dict()[
        "shared.s.mixer.o_proj.weight"
    ]
    alone = make("A@s M A M{mlp: none}", random=False).state_dict()["shared.s.mixer.o_proj.weight"]
    torch.testing.assert_close(shared * 5**0.5, alone * 7**0.5)


# ------------------------------------------------------------------------------------------- whatever is registered
@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_reads_twice_the_width_and_takes_corrections(name):
    """Narrowed as it is, it costs what it says; at both widths it begins as its own kind does."""
    wide = {**SMALL[name], "input": "concat_embeddings", "mlp": "none"}
    mixer = plan(hl.ModelSpec(**spec_of("Z", {"Z": wide}))).layers[0].mixers[0]
    spec = spec_of("Z Z@s{low_rank: 2} Z@s" if mixer.readers() else "Z Z@s2", {"Z": wide})
    model, cost = hl.build(spec, seed=0).eval(), model_cost(hl.ModelSpec(**spec))
    assert model(IDS).logits.isfinite().all()
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    for tokens, past in ((13, 0), (1, 9), (5, 9)):
        with torch.no_grad(), backend.use("reference"):
            state = model(torch.zeros(1, past, dtype=torch.int64), model.init_state(1, 20)).state if past else None
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, tokens, dtype=torch.int64), state)
        assert cost.forward(tokens, past).matmul == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("registry", [mixers, mlps])
def test_no_part_has_a_setting_by_the_name_of_an_option(registry):
    """An override could not tell them apart."""
    for name in registry.names():
        assert not {*WORDS, "mlp", "combine"} & set(registry.get(name).Config.__dataclass_fields__), name


class Stubborn(mixers.get("attention")):
    """Names no projection that ends it."""

    residual_projections = ()


def test_a_mixer_that_cannot_be_narrowed_says_so():
    mixers.register("stubborn")(Stubborn)
    try:
        with pytest.raises(SpecError, match=r"blocks\.Z\.input: concat_embeddings: Stubborn names no residual_proj"):
            plan(hl.ModelSpec(**spec_of("Z", {"Z": {"mixer": "stubborn", "input": "concat_embeddings"}})))
    finally:
        mixers.unregister("stubborn")


# -------------------------------------------------------------------------------------------------- specs and mistakes
def test_a_spec_that_uses_none_of_it_is_what_it_was():
    """Saved models and states carry fingerprints, and these are of the version before."""
    blocks = {"M": {"mixer": "mamba2"}, "A": {"mixer": {"type": "attention", "heads": 4}}}
    given = hl.ModelSpec(d_model=64, vocab_size=50, pattern="(MA)2", blocks=blocks, tie_embeddings=True)
    assert given.fingerprint == "3b894c75fdb9a85a"
    resolved = plan(hl.ModelSpec(d_model=64, vocab_size=50, pattern="A@x2-")).spec
    assert resolved.fingerprint == "b704f5358c7971c4"
    assert set(resolved.blocks["A"]) == {"mixer", "mlp"}
    assert "norms" not in resolved.to_dict()
    systems = plan(hl.ModelSpec(d_model=32, vocab_size=16, pattern="SmMWA{mlp: gelu}A{mlp: relu2}")).spec
    assert (
        systems.fingerprint == "300d1cadb60716a6"
    )  # s4, mamba and mamba2 have more settings since: compose.spec.LATER


@pytest.mark.parametrize(
    ("letter", "change"),
    [
        ("S", {"time_scale": 2.0}),
        ("m", {"discretization": "zoh"}),
        ("m", {"select": ["dt"]}),
        ("m", {"gate": False}),
        ("M", {"gated_norm": False}),
    ],
)
def test_a_later_setting_counts_where_it_changes_something(letter, change):
    spec = plan(hl.ModelSpec(d_model=32, vocab_size=16, pattern=letter)).spec.to_dict()
    spec["blocks"][letter]["mixer"] |= change
    assert (
        plan(hl.ModelSpec(**spec)).spec.fingerprint
        != hl.build(pattern=letter, d_model=32, vocab_size=16).spec.fingerprint
    )


def test_a_resolved_spec_says_the_options_that_are_used():
    given = hl.ModelSpec(**spec_of("A -{norms: pre} Z@s{low_rank: {mixer: 2}} M Z@s A", {"Z": ZAMBA}, norms="sandwich"))
    stack = plan(given)
    assert stack.spec.blocks["Z"] == plan(stack.spec).spec.blocks["Z"]
    words = {word: stack.spec.blocks["Z"].get(word) for word in WORDS}
    assert words == {"norms": None, "input": "concat_embeddings", "output": "next_mixer", "low_rank": 3}
    assert stack.spec.norms == "sandwich"
    assert plan(stack.spec) == stack == plan(hl.ModelSpec.from_dict(stack.spec.to_dict()))
    assert [layer.options.norms for layer in stack.layers][:3] == ["sandwich", "pre", "sandwich"]
    pre = plan(hl.ModelSpec(**spec_of("A", {"A": {**SMALL["A"], "norms": "pre"}}, norms="sandwich")))
    assert pre.spec.blocks["A"]["norms"] == "pre"
    assert plan(pre.spec) == pre


@pytest.mark.parametrize(
    ("pattern", "changes", "message"),
    [
        ("A", {"norms": "post"}, "norms: 'post'; it must be one of pre, sandwich"),
        ("A{norms: sandwhich}", {}, r"pattern\.A\.norms: 'sandwhich'.*Did you mean 'sandwich'"),
        ("A{norm: sandwich}", {}, r"pattern\.A\.norm: unknown field; did you mean norms\?"),
        ("A{input: concat_embeddings}", {}, r"pattern\.A\.input: the sizes of a mixer follow from it"),
        ("Z", {"Z": {"mixer": "attention", "input": "both"}}, r"blocks\.Z\.input: 'both'"),
        ("Z", {"Z": {"mlp": "swiglu", "input": "concat_embeddings"}}, r"blocks\.Z\.input: .* the block has none"),
        ("Z", {"Z": {"mixer": "attention", "inputs": "residual"}}, r"blocks\.Z\.inputs: unknown field; did you mean input"),  # noqa: E501
        ("A M{output: next_mixer}", {}, "layer 1: output: next_mixer is for the mixer of the next layer; there is none"),  # noqa: E501
        ("M{output: next_mixer} - A", {}, "layer 0: output: next_mixer .* next layer; - has none"),
        ("A{low_rank: 2}", {}, r"pattern: A\{low_rank: 2\}: low_rank: it corrects weights that places share"),
        ("A@s{low_rank: -1}", {}, r"pattern\.A\.low_rank: -1 is out of range"),
        ("A@s{low_rank: true}", {}, r"low_rank: True is not an integer"),
        ("A@s{low_rank: {mixr: 2}}", {}, r"low_rank\.mixr: unknown field; did you mean mixer"),
        ("A@s{low_rank: {mixer: 2.5}}", {}, r"low_rank\.mixer: 2\.5 is not an integer"),
        ("A@s{mlp: none, low_rank: {mlp: 2}}", {}, r"low_rank\.mlp: it has no linear layer that reads"),
        ("[s4]@s{low_rank: {mixer: 2}}", {}, r"low_rank\.mixer: it has no linear layer that reads"),
        ("[s4]@s{low_rank: 2, mlp: none}", {}, r"neither its mixer nor its MLP has a linear layer that reads"),
        ("A@s A@s{norms: sandwich}", {}, "share the weights 's' but differ"),
        ("A@s Z@s", {"Z": {**SMALL["A"], "input": "concat_embeddings"}}, "share the weights 's' but differ"),
        ("<A|Z>", {"Z": {**SMALL["M"], "norms": "sandwich"}}, "its members differ in norms; say it once, behind the >"),
        ("<A|Z>", {"Z": {**SMALL["M"], "input": "concat_embeddings"}}, "its members differ in input"),
    ],
)  # fmt: skip
def test_mistakes(pattern, changes, message):
    keys = {} if "Z" in changes else changes
    with pytest.raises(SpecError, match=message):
        plan(hl.ModelSpec(**spec_of(pattern, changes if "Z" in changes else None, **keys)))


def test_a_place_may_say_what_members_side_by_side_do_not_agree_on():
    spec = hl.ModelSpec(**spec_of("<A|Z>{norms: pre}", {"Z": {**SMALL["M"], "norms": "sandwich"}}))
    assert plan(spec).layers[0].options.norms == "pre"


def test_no_correction_is_rank_0():
    layer = plan(hl.ModelSpec(**spec_of("Z@s{low_rank: 0} M Z@s{low_rank: {mixer: 0}} M", {"Z": ZAMBA}))).layers[0]
    assert layer.options.low_rank == 0
    assert not any("low_rank" in name for name in make("Z@s{low_rank: 0} M", {"Z": ZAMBA}).state_dict())
