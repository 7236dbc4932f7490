"""Recorded steps on a GPU, where they are CUDA graphs: tokens and states of launched ones, and nothing stale."""

import pytest
import torch

import hybridlm as hl
from hybridlm.infer import Sampler, Stream, graphs
from hybridlm.state import leaves
from hybridlm.testing.patterns import alphabet

pytestmark = pytest.mark.gpu

V = 512
PATTERNS = ["[mamba2]3[attention]", "[sliding_window]{window: 24}[mamba]", "[attention]@a [mamba2] [attention]@a"] + [
    f"[{name}] -" for name in alphabet()
]
HOT = Sampler(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.1)


def build(pattern, **spec):
    blocks = {name: {"mixer": {"type": name}} for name in alphabet()}
    model = hl.build(pattern=pattern, d_model=128, vocab_size=V, seed=1, blocks=blocks, **spec)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model.to("cuda", torch.float64).eval()


def prompts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, V, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("how", [{}, {"stop": list(range(0, V, 40))}, {"sampler": HOT, "seed": 4}], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_replayed_equals_launched(pattern, how):
    model = build(pattern, mlp="moe")
    launched, replayed = (Stream(model, prompts(37, 5, 90), 70, cuda_graph=graph, **how) for graph in (False, True))
    assert torch.equal(launched.rest(), replayed.rest())
    assert torch.equal(launched.counts, replayed.counts)
    expected, found = launched.state, replayed.state
    assert torch.equal(expected.position, found.position)
    for old, new in zip(leaves(expected.layers), leaves(found.layers), strict=True):
        for name, tensor in old.tensors().items():
            shape = tuple(slice(size) for size in tensor.shape)
            torch.testing.assert_close(new.tensors()[name][shape], tensor, rtol=1e-9, atol=1e-9)


def test_prompts_are_recorded_and_weights_looked_at():
    model, ids = build("[mamba2]3[attention]"), torch.stack(prompts(60, 60)).cuda()
    for change in (lambda: None, lambda: model.lm_head.weight.data.neg_(), replace(model)):
        change()
        expected = hl.generate(model, ids, 20, cuda_graph=False)
        for _ in range(4):
            assert torch.equal(hl.generate(model, ids, 20, cuda_graph=True), expected)
        (rig,) = graphs._kept[model]
        assert len(rig.replays) == 2


def replace(model):
    def change():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())

    return change
