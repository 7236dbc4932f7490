"""`time_scale`: a signal at half the rate, with twice the step, gets the answer that it gets at the full rate.

A step is right to the first order in dt: u_k stands for the input of the whole step before it, whether it is held or
averaged by the bilinear rule. So the two answers differ by O(dt), and halving dt halves their difference.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import hybridlm as hl
from hybridlm.layers.init import Streams
from hybridlm.registry import mixers

CASES = {
    "s4": ("s4", {}),
    "s4d": ("s4d", {}),
    "s4d-bilinear": ("s4d", {"discretization": "bilinear"}),
    "s4d-inv": ("s4d", {"init": "inv"}),
    "s5": ("s5", {"blocks": 2}),
}
SPAN = 8.0  # seconds of signal


def layer(name, options):
    """A layer in float64 whose memory is about a second, and the logarithm of its steps at 256 samples."""
    mixer = mixers.get(name)
    mixer = mixer(mixer.Config(d_state=16, dt_min=0.01, dt_max=0.1, **options), 4)
    mixer.reset_parameters(Streams(0))
    (log_dt,) = [p for key, p in mixer.named_parameters() if key.endswith("log_dt")]
    return mixer.double(), log_dt, log_dt.detach().double().clone()


def signal(samples):
    """Three slow waves in each of four channels, (1, samples, 4)."""
    t = SPAN * torch.arange(samples, dtype=torch.float64) / samples
    waves = [sum(torch.sin(2 * math.pi * f * t + 3 * f * c) for f in (0.3, 0.7, 1.1)) for c in range(4)]
    return torch.stack(waves, dim=-1)[None]


def error(y, expected):
    return ((y - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_half_the_rate_with_twice_the_step(case):
    mixer, log_dt, base = layer(*CASES[case])
    native, errors = mixer.config, []
    for samples in (2048, 4096, 8192, 16384):
        log_dt.copy_(base - math.log(samples / 256))  # the same system in seconds, sampled more finely
        x = signal(samples)
        mixer.config = native
        full, unscaled = mixer(x)[0][:, ::2], mixer(x[:, ::2])[0]
        mixer.config = replace(native, time_scale=2.0)
        errors.append(error(mixer(x[:, ::2])[0], full))
        assert error(unscaled, full) > 0.1  # without it, the system runs twice as fast
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(0.88 < order < 1.12 for order in orders), orders
    assert errors[-1] < 0.005


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_multiplies_every_step_in_training_and_in_decoding(case):
    """dt = time_scale * exp(log_dt): the same bits as steps that are so much larger, by convolution and recurrence."""
    mixer, log_dt, base = layer(*CASES[case])
    x, native = torch.randn(2, 9, 4, dtype=torch.float64), mixer.config
    mixer.config = replace(native, time_scale=4.0)
    scaled = run(mixer, x)
    mixer.config = native
    log_dt.copy_(base + math.log(4.0))
    for got, wanted in zip(scaled, run(mixer, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def run(mixer, x):
    """Outputs without a state, with one, token by token, and both last states."""
    whole, state = mixer(x, mixer.init_state(2, 9, dtype=torch.float64))
    steps, ys = mixer.init_state(2, 9, dtype=torch.float64), []
    for token in x.split(1, dim=1):
        y, steps = mixer(token, steps)
        ys.append(y)
    return mixer(x)[0], whole, torch.cat(ys, dim=1), state.ssm, steps.ssm


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES.values()}))
def test_it_changes_no_shape_and_no_first_value(name):
    """So an override on a place with shared weights may set it."""
    mixer = mixers.get(name)
    assert "time_scale" not in mixer.initial_fields
    plain, scaled = (mixer(mixer.Config(d_state=8, time_scale=scale), 32) for scale in (1.0, 3.0))
    plain.reset_parameters(Streams(1))
    scaled.reset_parameters(Streams(1))
    for (key, a), (_, b) in zip(plain.named_parameters(), scaled.named_parameters(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("letter", ["S", "s", "H", "V"])
def test_steps_and_frequencies_stay_in_float32(letter):
    """Two layers over 1,000 tokens in bf16 weights. With rounded frequencies they were 5% to 40% off."""
    model = hl.build(pattern=f"{letter}2", d_model=48, vocab_size=31, seed=1).eval()
    ids = torch.randint(0, 31, (2, 1000), generator=torch.Generator().manual_seed(0))
    true = model(ids, targets=ids)
    true.loss.backward()
    with torch.no_grad():
        logits = model(ids).logits
        rounded = model.bfloat16()(ids).logits
    assert ((rounded.float() - logits).norm() / logits.norm()).item() < 0.02
    precise = set(model.blocks[0].mixer.precise)
    assert precise
    for name, parameter in model.blocks[0].mixer.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == (torch.float32 if name in precise else torch.bfloat16), name
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert {p.dtype for p in hl.build(pattern=letter, d_model=48, vocab_size=31, dtype=torch.float16).parameters()} == {
        torch.float16,
        torch.float32,
    }
