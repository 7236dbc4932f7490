"""What an arm costs: three shares of attention, each with a denominator of its own."""

import pytest

from hybridlm.ablate.arms import arm_cost
from hybridlm.compose.build import build
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec


@pytest.mark.parametrize(
    ("pattern", "layers", "mixers"),
    [
        ("MMMM", 0.0, 0.0),
        ("MAMM", 1 / 4, 1 / 4),
        ("A-A-", 2 / 4, 2 / 2),  # MLPs alone are layers without a mixer
        ("<M|A> <A|A> M -", 2 / 4, 3 / 5),
        ("W M", 1 / 2, 1 / 2),
    ],
)
def test_attention_as_a_share_of_layers_of_mixers_and_of_parameters(pattern, layers, mixers):
    spec = plan(ModelSpec(d_model=64, vocab_size=64, pattern=pattern)).spec
    cost = arm_cost(spec, context=32, length=32)
    assert (cost.attention_of_layers, cost.attention_of_mixers) == pytest.approx((layers, mixers))
    model = build(spec, device="meta")
    held = [mixer for block in model.blocks for mixer in block.mixers.values() if "ttention" in type(mixer).__name__]
    held += [mixer for block in model.blocks for mixer in block.mixers.values() if "Window" in type(mixer).__name__]
    share = sum(p.numel() for mixer in held for p in mixer.parameters())
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.attention_of_parameters == pytest.approx(share / cost.params)
