"""Reading a spec: what resolves to what, and what every mistake says."""

import time

import pytest

from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import PatternError, SpecError

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 16}, "mlp": "gelu"},
    "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2}},
    "W": {"mixer": {"type": "sliding_window", "window": 4}, "mlp": {"type": "swiglu", "width": 96}},
    "F": {"mlp": {"type": "relu2", "width": 50}},
}


def spec(**changes) -> ModelSpec:
    return ModelSpec.from_dict({"d_model": 64, "vocab_size": 50, "pattern": "MA", "blocks": BLOCKS, **changes})


def test_a_resolved_spec_says_everything_and_resolves_to_itself():
    once = plan(spec(pattern="(M3A)2 W{window: 9}@x W@x - F <M|A>{mlp: gelu, combine: norm_mean}")).spec
    assert once.blocks["A"]["mixer"]["head_dim"] == 16
    assert once.blocks["A"]["mlp"] == {"type": "swiglu", "width": 192}
    assert once.mlp == {"type": "swiglu", "width": 192}
    assert once.blocks["F"]["mixer"] == "none"
    assert plan(once).spec == once
    assert plan(ModelSpec.from_dict(once.to_dict())).spec == once
    assert plan(once).layers == plan(spec(pattern=once.pattern)).layers


def test_yaml_text_and_spec_are_one(tmp_path):
    resolved = plan(spec()).spec
    (tmp_path / "model.yaml").write_text(resolved.to_yaml())
    assert ModelSpec.read(tmp_path / "model.yaml") == resolved


def test_a_list_and_a_fraction_are_read_printed_and_read_again(tmp_path):
    """`select: []` and `select: [dt, B]` in a file and in an override, `expand: 1.5`; `expand: 2.0` is 2."""
    blocks = {"m": {"mixer": {"type": "mamba", "select": [], "expand": 1.5, "discretization": "zoh"}}}
    once = plan(spec(pattern="m m{select: [B, dt], expand: 2.0} m{gate: false}", blocks=blocks)).spec
    assert once.blocks["m"]["mixer"]["select"] == []
    (tmp_path / "model.yaml").write_text(once.to_yaml())
    again = plan(ModelSpec.read(tmp_path / "model.yaml"))
    assert again.spec == once
    assert [layer.mixers[0].config.select for layer in again.layers] == [(), ("dt", "B"), ()]
    assert [repr(layer.mixers[0].config.expand) for layer in again.layers] == ["1.5", "2", "1.5"]
    assert [layer.mixers[0].config.gate for layer in again.layers] == [True, True, False]
    with pytest.raises(SpecError, match=r"blocks\.m\.mixer\.select\.0: 'dT'; .* Did you mean 'dt'\?"):
        plan(spec(pattern="m", blocks={"m": {"mixer": {"type": "mamba", "select": ["dT"]}}}))
    with pytest.raises(SpecError, match=r"pattern\.m\.select: 'B' is not a list"):
        plan(spec(pattern="m{select: B}", blocks=blocks))


def test_layers_are_what_the_pattern_says():
    layers = plan(spec(pattern="M A{kv_heads: 1} <M|A>{mlp: none} - F W{mlp: none}")).layers
    assert [[part.type for part in layer.mixers] for layer in layers] == [
        ["mamba2"],
        ["attention"],
        ["mamba2", "attention"],
        [],
        [],
        ["sliding_window"],
    ]
    assert [layer.mlp and layer.mlp.type for layer in layers] == ["gelu", "swiglu", None, "swiglu", "relu2", None]
    assert layers[1].mixers[0].config.kv_heads == 1


@pytest.mark.parametrize(
    ("pattern", "rope", "expected"),
    [("AW", None, True), ("AM", None, False), ("AM", True, True), ("A", False, False)],
)
def test_attention_has_positions_where_nothing_else_knows_the_order(pattern, rope, expected):
    blocks = BLOCKS | {"A": {"mixer": {"type": "attention", "rope": rope}}}
    stack = plan(spec(pattern=pattern, blocks=blocks))
    attention = next(part for layer in stack.layers for part in layer.mixers if part.type == "attention")
    assert attention.config.rope is expected
    assert stack.spec.blocks["A"]["mixer"]["rope"] is expected


@pytest.mark.parametrize(("decay", "rope"), [("none", True), ("fixed", False), ("channel", False)])
def test_whether_a_mixer_knows_the_order_may_depend_on_its_config(decay, rope):
    blocks = {"l": {"mixer": {"type": "linear_attention", "decay": decay}}, "A": {"mixer": "attention"}}
    stack = plan(spec(pattern="lA", blocks=blocks))
    assert stack.recurrent != rope
    assert stack.layers[1].mixers[0].config.rope is rope


def test_the_default_alphabet_needs_no_blocks():
    stack = plan(ModelSpec(d_model=64, vocab_size=50, pattern="AWSMm"))
    assert [layer.mixers[0].type for layer in stack.layers] == ["attention", "sliding_window", "s4", "mamba2", "mamba"]


def test_a_foreign_notation_is_read_only_when_asked_for():
    foreign = plan(ModelSpec(d_model=64, vocab_size=50, pattern="M-M*-", notation="megatron"))
    types = [layer.mixers[0].type if layer.mixers else layer.mlp.type for layer in foreign.layers]
    assert types == ["mamba2", "swiglu", "mamba2", "attention", "swiglu"]
    assert all(layer.mlp is None for layer in foreign.layers if layer.mixers)
    assert foreign.spec.notation is None
    assert plan(foreign.spec).layers == foreign.layers
    with pytest.raises(PatternError):
        plan(ModelSpec(d_model=64, vocab_size=50, pattern="M-M*-"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "(M3X)2"}, r"unknown block 'X'; defined here: "),
        ({"d_model": True}, "d_model: True is not an integer"),
        ({"d_model": 64.0}, "d_model: 64.0 is not an integer"),
        ({"d_model": 10**9}, "d_model: 1000000000 is out of range"),
        ({"d_model": float("nan")}, "d_model: nan"),
        ({"d_model": -64}, "d_model: -64 is out of range"),
        ({"vocab": 3}, r"vocab: unknown field; did you mean vocab_size\?"),
        ({"vocab_size": 0}, "vocab_size: 0"),
        ({"dropout": float("inf")}, "dropout: inf"),
        ({"norm": "rms"}, "norm: 'rms'; it must be one of rmsnorm, layernorm"),
        ({"tie_embeddings": "yes"}, "tie_embeddings: 'yes'; it must be true or false"),
        ({"blocks": 3}, "blocks: 3"),
        ({"pattern": 7}, "pattern: 7"),
        ({"mlp": "swiglu2"}, "mlp.type: unknown mlp 'swiglu2'"),
        ({"mlp": "none", "pattern": "M-"}, "'-' is an MLP alone"),
        ({"notation": "nemo"}, "notation"),
        ({"blocks": {"M": {"mixer": {"type": "mamba2", "d_stat": 3}}, "A": BLOCKS["A"]}}, r"blocks\.M\.mixer\.d_stat: unknown field; did you mean d_state\?"),  # noqa: E501
        ({"blocks": {"M": {"mixer": {"type": "torch.nn.Linear"}}, "A": BLOCKS["A"]}}, r"blocks\.M\.mixer\.type: unknown mixer"),  # noqa: E501
        ({"blocks": {"M": {"mixer": {"d_state": 3}}, "A": BLOCKS["A"]}}, r"blocks\.M\.mixer"),
        ({"blocks": {"M": {}, "A": BLOCKS["A"]}, "mlp": "none"}, r"blocks\.M: neither mixer nor mlp"),
        ({"blocks": {"M": {"mixr": "mamba"}, "A": BLOCKS["A"]}}, r"blocks\.M\.mixr: unknown field; did you mean mixer"),
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": 5}}, "M": BLOCKS["M"]}}, r"blocks\.A\.mixer\.heads: 5 does not divide d_model = 64; use 4 or 8"),  # noqa: E501
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 3}}, "M": BLOCKS["M"]}}, r"blocks\.A\.mixer\.kv_heads: 3"),  # noqa: E501
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": "4"}}, "M": BLOCKS["M"]}}, r"heads: '4' is not an integer"),  # noqa: E501
        ({"blocks": {"A": {"mixer": {"type": "attention", "head_dim": 7, "rope": True}}, "M": BLOCKS["M"]}}, "head_dim: 7 is odd"),  # noqa: E501
        ({"pattern": "W{window: 0}"}, r"window: 0 is out of range"),
        ({"pattern": "W{windw: 9}"}, r"windw: unknown field; did you mean window\?"),
        ({"pattern": "<M|A>"}, "its members have different MLPs"),
        ({"pattern": "<M|F>"}, "needs a mixer"),
        ({"pattern": "<M|A>{mlp: none, combine: mean}"}, "combine: 'mean'"),
        ({"pattern": "<M|A>{mlp: none, window: 3}"}, "window: unknown field"),
        ({"pattern": "A{kv_heads: 1}@s A@s"}, "share the weights 's' but differ"),
        ({"pattern": "A@s M@s"}, "share the weights 's' but differ"),
        ({"pattern": "F{width: 3}"}, "no mixer"),
        ({"blocks": {**BLOCKS, "Z": {"mixxer": 3}}}, r"blocks\.Z\.mixxer: unknown field"),
        ({"blocks": {**BLOCKS, "Z": {"mixer": "nosuch"}}}, r"blocks\.Z\.mixer\.type: unknown mixer"),
        ({"blocks": {**BLOCKS, "a b": {"mixer": "mamba"}}}, "no pattern can name it"),
        ({"blocks": {**BLOCKS, "-": {"mixer": "mamba"}}}, "no pattern can name it"),
        ({"pattern": "A@x A{mlp: gelu}@x"}, "initial values or MLP"),
        ({"pattern": "M@x M{dt_min: 0.01}@x"}, "initial values or MLP"),
        ({"pattern": "A@keys A@keys"}, "the label 'keys' is a word of PyTorch's"),
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": 1 << 24, "kv_heads": 3}}, "M": BLOCKS["M"]}}, "kv_heads: 3 does not divide heads = 16777216; use 2 or 4"),  # noqa: E501
        ({"blocks": {"A": {"mixer": {"type": "attention", "heads": (1 << 24) - 3, "head_dim": 2, "kv_heads": 7}}, "M": BLOCKS["M"]}}, "kv_heads: 7 does not divide"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_path_at_once(changes, message):
    plan(spec(pattern="A@s A@s{rope_theta: 5}"))  # PyTorch's meta device takes a second when first used
    start = time.process_time()
    with pytest.raises((SpecError, PatternError), match=message):
        plan(spec(**changes))
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("missing", ["d_model", "vocab_size", "pattern"])
def test_what_a_model_needs_is_asked_for(missing):
    given = {"d_model": 64, "vocab_size": 50, "pattern": "A"}
    del given[missing]
    with pytest.raises(SpecError, match=f"{missing}: missing"):
        ModelSpec.from_dict(given)


def test_defaults_are_legal_at_every_width():
    for width in [*range(32, 200), 255, 257, 1000, 1031]:
        plan(ModelSpec(d_model=width, vocab_size=50, pattern="AWSMm"))


def test_a_spec_is_a_value_of_its_own():
    blocks = {"A": {"mixer": {"type": "attention"}}}
    one = ModelSpec(d_model=64, vocab_size=50, pattern="A", blocks=blocks)
    assert hash(one) == hash(ModelSpec(d_model=64, vocab_size=50, pattern="A", blocks=blocks))
    before = one.fingerprint
    blocks["A"]["mixer"]["type"] = "mamba"
    assert one.fingerprint == before


# -------------------------------------------------------------------------------------------- what an override brings
@pytest.mark.parametrize(
    ("pattern", "resolved"),
    [
        ("AA{heads: 4}", "AA{heads: 4, kv_heads: 4, head_dim: 32}"),
        ("(MA{heads: 4})2", "(MA{heads: 4, kv_heads: 4, head_dim: 32})2"),
        ("<M|A{heads: 4}>", "<M|A{heads: 4, kv_heads: 4, head_dim: 32}>"),
        ("T{expand: 1.25}", "T{expand: 1.25, head_dim: 40}"),
        ("A-{width: 7}", "A-{width: 7}"),
        ("W{window: 9}A{mlp: {type: gelu, width: 5}}", "W{window: 9}A{mlp: {type: gelu, width: 5}}"),
    ],
)
def test_defaults_follow_an_override_and_are_said_in_the_resolved_spec(pattern, resolved):
    stack = plan(ModelSpec(pattern=pattern, d_model=128, vocab_size=16))
    assert stack.spec.pattern == resolved
    again = plan(ModelSpec.from_dict(stack.spec.to_dict()))
    assert again.spec == stack.spec
    assert [layer.mixers for layer in again.layers] == [layer.mixers for layer in stack.layers]


def test_what_a_block_says_stays_where_another_setting_changes():
    blocks = {"A": {"mixer": {"type": "attention", "kv_heads": 2}}}
    stack = plan(ModelSpec(pattern="A{heads: 4}", blocks=blocks, d_model=128, vocab_size=16))
    config = stack.layers[0].mixers[0].config
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 32)


def test_an_alone_mlp_block_keeps_its_override():
    blocks = {"X": {"mlp": "gelu"}}
    spec = plan(
        ModelSpec(
            pattern="AX{mlp: {type: gelu, width: 5}}",
            blocks={**blocks, "A": {"mixer": "attention"}},
            d_model=64,
            vocab_size=16,
        )
    ).spec
    assert plan(spec).spec == spec
    assert plan(spec).layers[1].mlp.config.width == 5
