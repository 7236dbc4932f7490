"""The cost model against the models themselves: parameters, state bytes and FLOPs of random stacks, and hand counts."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import hybridlm as hl
from hybridlm.compose.cost import model_cost
from hybridlm.errors import PatternError, SpecError
from hybridlm.ops import backend
from hybridlm.registry import mixers

WIDTH, VOCABULARY = 32, 48
BLOCKS = {
    "A": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True}, "mlp": {"type": "gelu"}},
    "W": {"mixer": {"type": "sliding_window", "heads": 2, "window": 6}, "mlp": "none"},
    "S": {"mixer": {"type": "s4", "d_state": 8}},
    "M": {"mixer": {"type": "mamba2", "d_state": 16, "head_dim": 8, "n_groups": 2, "chunk": 8}},
    "m": {"mixer": {"type": "mamba", "d_state": 4, "bcdt_norm": True}},
    "K": {"mixer": {"type": "attention"}},
    "V": {"mixer": {"type": "mamba2", "d_state": 8}},
    "F": {"mlp": {"type": "relu2"}},
}
MEMBERS = "KSmV"  # blocks that agree on the MLP


def random_spec(seed: int) -> hl.ModelSpec:
    """A legal spec of three to seven layers: any blocks, overrides, shared weights, mixers side by side."""
    draw = random.Random(seed)
    atoms = [*BLOCKS, "-", "W{window: 3}", "A@all", "K@kept{rope: false}", "K@kept", "m@seen", "M{mlp: none}", "F"]
    side = [f"<{'|'.join(draw.sample(MEMBERS, draw.choice((2, 3))))}>{tail}" for tail in ("", "{combine: norm_mean}")]
    layers = draw.choices([*atoms, *side], k=draw.randint(3, 7))
    return hl.ModelSpec(
        d_model=WIDTH,
        vocab_size=VOCABULARY,
        pattern=" ".join(layers),
        blocks=BLOCKS,
        mlp={"type": "swiglu", "width": draw.choice((16, 48))},
        norm=draw.choice(("rmsnorm", "layernorm")),
        combine=draw.choice(("sum", "norm_mean")),
        tie_embeddings=draw.random() < 0.5,
    )


def counted(model: hl.HybridLM, tokens: int, past: int) -> int:
    """Matrix FLOPs of one call on the reference backend, as PyTorch counts them."""
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with torch.no_grad(), backend.use("reference"):
        state = model.init_state(1, past + tokens) if past else None
        if past:
            state = model(torch.zeros(1, past, dtype=torch.int64), state=state).state
        with FlopCounterMode(display=False) as counter:
            model(ids, state=state)
    return counter.get_total_flops()


SEEDS = [pytest.param(seed, marks=[] if seed < 15 else pytest.mark.deep) for seed in range(50)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_stacks(seed):
    """Parameters and bytes exactly, matrix FLOPs within 2%: in training, in a prefill that continues, in decoding."""
    spec = random_spec(seed)
    cost, model = model_cost(spec), hl.build(spec)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters()), spec.pattern
    for batch, length, dtype in [(1, 1, torch.float32), (2, 5, torch.bfloat16), (3, 40, torch.float64)]:
        state = model.init_state(batch, length, dtype=dtype)
        assert cost.state(length, dtype, batch).total == state.nbytes, spec.pattern
    for tokens, past in [(21, 0), (96, 0), (13, 9), (1, 20)]:
        measured = counted(model, tokens, past)
        assert cost.forward(tokens, past).matmul == pytest.approx(measured, rel=0.02), (spec.pattern, tokens, past)


@pytest.mark.parametrize("letter", "AWSmM")
@pytest.mark.parametrize(("tokens", "past"), [(2, 0), (64, 0), (65, 0), (1, 64), (130, 7)])
def test_each_mixer_alone(letter, tokens, past):
    """Without MLP and with few words, so that nothing hides a wrong count of the mixer."""
    spec = hl.ModelSpec(d_model=32, vocab_size=2, pattern=letter, blocks=BLOCKS, mlp="none")
    assert model_cost(spec).forward(tokens, past).matmul == pytest.approx(
        counted(hl.build(spec), tokens, past), rel=0.02
    )


# --------------------------------------------------------------------------------------------------------- hand counts
def cost_of(name: str, d_model: int, **config):
    part = mixers.get(name)
    return part.cost(part.Config(**config).resolve(d_model), d_model)


def test_hand_count_of_attention():
    """d 4, 2 heads of 2, 1 of keys: 3 tokens make 9 pairs."""
    cost = cost_of("attention", 4, heads=2, kv_heads=1)
    assert cost.parameters == 4 * 4 + 2 * 4 * 2 + 4 * 4
    flops = cost.forward(3, 0)
    assert flops.matmul == 2 * 3 * (16 + 16 + 16) + 9 * 2 * (2 * 2 + 2 * 2)  # q k and w v of 2 heads
    assert flops.scan == flops.fft == 0
    assert cost.state(10, 2).kv == 10 * 2 * 2 * 2  # slots, keys and values, width 2, bytes


def test_hand_count_of_a_window():
    """d 4, 1 head, window 2; far into a document one query meets 2 keys."""
    cost = cost_of("sliding_window", 4, heads=1, window=2)
    assert cost.forward(1, 100).matmul == 2 * 4 * 16 + 2 * (2 * 4 + 2 * 4)
    assert cost.state(10, 4).kv == cost.state(1000, 4).kv == 2 * 2 * 4 * 4


def test_hand_count_of_mamba():
    """d 2, so 4 channels, of 3 states; convolution of 2 taps; dt from 1 number."""
    cost = cost_of("mamba", 2, d_state=3, d_conv=2, dt_rank=1)
    assert cost.parameters == 2 * 8 + (8 + 4) + 4 * (1 + 6) + (4 + 4) + 12 + 4 + 4 * 2  # in, conv, x, dt, A, D, out
    convolution = 4 * (2 + 2)  # 2 products, 1 sum and the bias
    recurrence = 4 * (
        3 * (1 + 1 + 2) + 1 + 2
    )  # a state: dt A, A h, B u and its sum; a channel: u = dt x, D x and its sum
    assert cost.forward(1, 5).scan == convolution + recurrence
    assert cost.forward(7, 0).scan == 7 * (convolution + recurrence)
    assert cost.forward(7, 0).fft == 0
    assert cost.state(10, 2).ssm == 4 * 3 * 4 + 4 * 1 * 2  # states in float32, one input a channel in 2 bytes


def test_hand_count_of_mamba2():
    """d 4, so 2 heads of 4; 3 states, 1 group; convolution of 2 taps over 8 + 3 + 3 channels."""
    cost = cost_of("mamba2", 4, d_state=3, head_dim=4, d_conv=2)
    assert cost.parameters == 4 * (8 + 14 + 2) + 14 * 3 + 2 * 3 + 8 + 8 * 4  # in, conv, A D dt-bias, norm, out
    convolution = 14 * (2 + 2)
    head = 4 * 3 * (1 + 2) + 4 * (1 + 2) + 1  # fade, x B and its sum; dt x, D x and its sum; dt A
    assert cost.forward(1, 5).scan == convolution + 2 * head
    assert cost.forward(1, 5).matmul == 2 * (4 * 24 + 8 * 4) + 2 * 2 * 4 * 3  # in, out, y = H C
    assert cost.state(10, 2).ssm == 2 * 4 * 3 * 4 + 14 * 1 * 2


def test_hand_count_of_s4():
    """d 2, 4 states, which are 2 couples."""
    cost = cost_of("s4", 2, d_state=4)
    couple = 6 + 4 + 2 + 2 + 6 + 4  # Lambda z; Re(row z); column times it; B u; sum of three; Re(C z)
    assert cost.forward(1, 5).scan == 2 * (2 * couple + 2)
    assert cost.forward(1, 5).fft == 0
    assert cost.state(10, 2).ssm == 2 * 4 * 4


class Counter(TorchDispatchMode):
    """FLOPs that PyTorch executes: real transforms at 5/2 N log2 N, and products and sums of tensors."""

    def __init__(self):
        super().__init__()
        self.fft = self.elementwise = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_fft_r2c", "_fft_c2r"):
            real = args[0] if name == "_fft_r2c" else out
            n = real.shape[-1]
            self.fft += 2.5 * real.numel() * torch.tensor(float(n)).log2().item()
        self.elementwise += {"mul": 1, "add": 1, "addcmul": 2}.get(name, 0) * getattr(out, "numel", int)()
        return out


@pytest.mark.parametrize("tokens", [2, 64, 100, 1000])
@pytest.mark.parametrize("past", [0, 3])
def test_fft_of_s4_is_what_runs(tokens, past):
    spec = hl.ModelSpec(
        d_model=8, vocab_size=2, pattern="S", blocks={"S": {"mixer": {"type": "s4", "d_state": 4}}}, mlp="none"
    )
    model = hl.build(spec)
    state = model.init_state(1, tokens + past)
    if past:
        state = model(torch.zeros(1, past, dtype=torch.int64), state=state).state
    with torch.no_grad(), Counter() as counter:
        model(torch.zeros(1, tokens, dtype=torch.int64), state=state if past else None)
    assert model_cost(spec).forward(tokens, past).fft == pytest.approx(counter.fft, rel=1e-6)


def test_scans_of_one_token_are_what_runs():
    """Each op alone, since a mixer multiplies and adds around it too."""
    from hybridlm.ops.selective_scan import selective_scan
    from hybridlm.ops.ssd import ssd

    b, d, n, h, p = 1, 4, 3, 2, 4
    x, dt, A, B, D = torch.ones(b, 1, d), torch.ones(b, 1, d), -torch.ones(d, n), torch.ones(b, 1, n), torch.ones(d)
    with torch.no_grad(), Counter() as counter:
        selective_scan(x, dt, A, B, B, D, state=torch.zeros(b, d, n))
    assert counter.elementwise == 4 * (3 * 4 + 3)
    x, dt, A, B, D = torch.ones(b, 1, h, p), torch.ones(b, 1, h), -torch.ones(h), torch.ones(b, 1, 1, n), torch.ones(h)
    with torch.no_grad(), Counter() as counter:
        ssd(x, dt, A, B, B, D, state=torch.zeros(b, h, p, n))
    assert counter.elementwise == 2 * (4 * 3 * 3 + 4 * 3 + 1)


# -------------------------------------------------------------------------------------------------------- whole models
def spec_of(pattern: str, **keys) -> hl.ModelSpec:
    return hl.ModelSpec(**{"d_model": WIDTH, "vocab_size": VOCABULARY, "pattern": pattern, **keys})


def test_shared_weights_count_once():
    alone, shared = model_cost(spec_of("A")), model_cost(spec_of("A@x3"))
    assert shared.parameters == alone.parameters
    assert shared.state(8).total == 3 * alone.state(8).total
    assert [layer.parameters > 0 for layer in shared.layers] == [True, False, False]


def test_tied_embeddings_count_once():
    assert (
        model_cost(spec_of("A")).parameters - model_cost(spec_of("A", tie_embeddings=True)).parameters
        == WIDTH * VOCABULARY
    )


def test_training_and_decoding_are_per_token():
    cost = model_cost(spec_of("AM"))
    assert cost.training(64).matmul == pytest.approx(3 * cost.forward(64, 0).matmul / 64)
    assert cost.decoding(64) == cost.forward(1, 63)
    assert cost.decoding(1) == cost.forward(1, 0)


def test_twin_holds_attention_everywhere():
    """Four layers with mixers, one MLP alone; the twin's heads are the stack's own."""
    spec = spec_of(
        "M2-A<A|M>", blocks={"M": {"mixer": "mamba2"}, "A": {"mixer": {"type": "attention", "heads": 2, "kv_heads": 1}}}
    )
    assert model_cost(spec).all_attention(100).total == 4 * 100 * 2 * 16 * 4
    assert model_cost(spec_of("AA")).all_attention(7, torch.float16, 3) == model_cost(spec_of("AA")).state(
        7, torch.float16, 3
    )
    assert model_cost(spec_of("M")).all_attention(100).total == 100 * 2 * WIDTH * 4


def test_nothing_is_allocated():
    """A model of 4,096 layers and 10^14 parameters costs neither memory nor time."""
    cost = model_cost(hl.ModelSpec(d_model=1 << 17, vocab_size=1 << 24, pattern="(M3A)1024"))
    assert cost.parameters > 1e14
    assert cost.state(1 << 40, torch.bfloat16, 64).total > 1e18
    assert cost.training(1 << 20).total > 1e15


@pytest.mark.parametrize(
    ("pattern", "error"), [("(MA", PatternError), ("MX", PatternError), ("M{d_stat: 1}", SpecError)]
)
def test_mistakes_are_those_of_the_plan(pattern, error):
    with pytest.raises(error):
        model_cost(spec_of(pattern))
