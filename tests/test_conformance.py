"""Every registered mixer against every law of state, in every dtype. There is no list of exceptions.

By default a mixer of the usual shape is held to them in float32 and bfloat16, and its variants in float64, in which the
truth is anyway. The deep tier has the other combinations, float16, and long rows.

C1 also holds the built-in mixers to oracles written from the papers with plain loops: tests/oracles/papers.py for the
first five, and a file of its own, tests/oracles/NAME.py, for each later one. Such a file has `oracle(mixer, x)` and may
have `VARIANTS`, {label: config}, other shapes of the mixer for which the laws must hold too.
"""

from __future__ import annotations

import functools
import itertools
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hybridlm.registry import mixers
from hybridlm.testing import LAWS, Solo, prove, require
from hybridlm.testing.check import MAY_REFUSE, numbers
from hybridlm.testing.knobs import UNDECAYED, called, set_step
from hybridlm.testing.script import Call, play
from hybridlm.testing.subject import memory

FOLDER = Path(__file__).parent / "oracles"
PAGES = {name: runpy.run_path(FOLDER / f"{name}.py") for name in mixers.names() if (FOLDER / f"{name}.py").exists()}
ORACLES = runpy.run_path(FOLDER / "papers.py")["ORACLES"] | {name: page["oracle"] for name, page in PAGES.items()}

DTYPES = [torch.float64, torch.float32, torch.bfloat16]

VARIANTS = {
    "attention-mqa-nope": ("attention", {"heads": 4, "kv_heads": 1, "head_dim": 8, "rope": False}),
    "attention-qk_norm": ("attention", {"heads": 2, "head_dim": 6, "qk_norm": True, "rope_theta": 100.0}),
    "attention-heads-wide": ("attention", {"heads": 3, "head_dim": 20, "rope_dim": 6}),
    "window-2": ("sliding_window", {"window": 2, "heads": 2}),
    "window-4-nope": ("sliding_window", {"window": 4, "heads": 4, "kv_heads": 2, "qk_norm": True, "rope": False}),
    "window-wider-than-all": ("sliding_window", {"window": 500, "heads": 2, "head_dim": 9, "rope_dim": 4}),
    "mamba-bcdt_norm": ("mamba", {"d_state": 4, "bcdt_norm": True, "d_conv": 2}),
    "mamba-wide": ("mamba", {"d_state": 5, "expand": 3, "d_conv": 7, "dt_rank": 3}),
    "mamba-zoh": ("mamba", {"d_state": 4, "discretization": "zoh"}),
    "mamba-lti": ("mamba", {"d_state": 4, "select": [], "gate": False}),
    "mamba-lti-zoh": ("mamba", {"d_state": 3, "select": [], "discretization": "zoh", "expand": 1.5}),
    "mamba-dt": ("mamba", {"d_state": 4, "select": ["dt"], "bcdt_norm": True}),
    "mamba-BC": ("mamba", {"d_state": 4, "select": ["B", "C"], "bcdt_norm": True, "gate": False}),
    "mamba-dt-B-zoh": ("mamba", {"d_state": 4, "select": ["dt", "B"], "discretization": "zoh"}),
    "mamba2-ungated": ("mamba2", {"d_state": 8, "head_dim": 6, "expand": 1.5, "n_groups": 2, "gated_norm": False}),
    "mamba2-groups-2": ("mamba2", {"d_state": 8, "head_dim": 8, "n_groups": 2, "chunk": 16, "d_conv": 3}),
    "mamba2-groups-h": ("mamba2", {"d_state": 6, "head_dim": 16, "n_groups": 4, "chunk": 5, "d_conv": 2}),
    "s4-64": ("s4", {"d_state": 64}),
}
VARIANTS |= {
    f"{name}-{label}": (name, config)
    for name, page in PAGES.items()
    for label, config in page.get("VARIANTS", {}).items()
}


@functools.cache
def subject(mixer: str, dtype: torch.dtype, variant: str | None = None, **sizes: int) -> Solo:
    """One mixer on its scene; the truth about it is computed once for all laws."""
    config = VARIANTS[variant][1] if variant else None
    return Solo(mixer, config=config, dtype=dtype, paper=ORACLES.get(mixer), **sizes)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


QUICK = ("short_conv",)
"""Mixers that torch.compile traces in seconds; the others are compiled in the deep tier (law C20)."""


def every_law() -> Iterator:
    """float64 in the deep tier, for mixers of which a variant is held to it."""
    varied = {mixer for mixer, _ in VARIANTS.values()}
    for mixer, dtype, number in itertools.product(mixers.names(), DTYPES, numbers()):
        slow = number == "C20" and dtype == torch.float32 and mixer not in QUICK
        known = dtype == torch.float64 and mixer in varied
        yield pytest.param(mixer, dtype, number, marks=pytest.mark.deep if slow or known else ())


READS = {"mamba": 16} | dict.fromkeys(["attention", "mla", "short_conv", "lstm", "gru"], 1)
"""Tokens that mixers without a `chunk` read at a time. The others may read 64."""


def tokens(variant: str) -> int:
    """Of its scene: enough to cross what it reads at a time, twice if that is 16 or fewer."""
    mixer, config = VARIANTS[variant]
    return 40 if config.get("chunk", READS.get(mixer, 64)) <= 16 else 70


@pytest.mark.parametrize(("mixer", "dtype", "number"), list(every_law()), ids=lambda v: short(v) if v in DTYPES else v)
def test_law(mixer, dtype, number):
    results = LAWS[number].check(subject(mixer, dtype))
    assert results
    require(results)


@pytest.mark.parametrize("number", numbers())
@pytest.mark.parametrize("variant", VARIANTS)
def test_law_of_variant(variant, number):
    """Other shapes of the same mixers, in float64: heads, groups, windows, norms, widths."""
    require(LAWS[number].check(subject(VARIANTS[variant][0], torch.float64, variant, tokens=tokens(variant))))


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=short)
@pytest.mark.parametrize("variant", VARIANTS)
def test_laws_of_variant_in_every_dtype(variant, dtype):
    """One test for all laws, here and below: thousands of tests would be collected only to be left out."""
    require(prove(subject(VARIANTS[variant][0], dtype, variant)))


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=short)
@pytest.mark.parametrize("mixer", mixers.names())
def test_laws_at_length(mixer, dtype):
    """Twice as wide, and long enough for several chunks."""
    require(prove(subject(mixer, dtype, d_model=64, tokens=150)))


# ------------------------------------------------------------------------------------------ what may be refused, limits
@pytest.mark.parametrize("mixer", mixers.names())
def test_only_rollback_is_refused(mixer):
    """The other laws may not be: `require` above counts that as broken."""
    assert MAY_REFUSE == ("C9",)
    refused = [r for r in LAWS["C9"].check(subject(mixer, torch.float32)) if r.verdict == "refused"]
    assert bool(refused) != mixers.get(mixer).rolls_back


def test_window_as_long_as_the_row_is_full_attention():
    full = Solo("attention", config={"heads": 2}, dtype=torch.float64)
    window = Solo("sliding_window", config={"heads": 2, "window": full.tokens}, dtype=torch.float64)
    window.module.load_state_dict(full.module.state_dict())
    x = full.scene
    torch.testing.assert_close(window.run(x)[0], full.run(x)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_a_step_of_size_zero_holds_the_state(mixer):
    solo = Solo(mixer, dtype=torch.float64)
    state = play(solo, Call.piece(range(solo.rows), 0, 9), solo.init_state(solo.rows))[1]
    before = {name: tensor.clone() for name, tensor in memory(state).items() if name.endswith("ssm")}
    assert set_step(solo.module, 0.0)
    state = play(solo, Call.piece(range(solo.rows), 9, 40), state)[1]
    assert before
    for name, tensor in before.items():
        assert torch.equal(memory(state)[name], tensor)


# ---------------------------------------------------------------------------------------------- C19, with the optimiser
@pytest.mark.parametrize("mixer", mixers.names())
def test_every_parameter_is_in_one_group_of_the_optimiser(mixer):
    """A_log, D, dt, norms, biases and embeddings are not decayed; every parameter is trained by exactly one group."""
    import hybridlm as hl
    from hybridlm.train.optim import parameter_groups

    model = hl.build(pattern="X", blocks={"X": {"mixer": {"type": mixer}}}, d_model=32, vocab_size=16)
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    spared = {name for name, settings in mixers.get(mixer).param_groups.items() if settings.get("weight_decay") == 0}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and name != "embed.weight" and not called(name, tuple(spared))
        assert (id(parameter) in decayed) == matrix, name
        assert not (matrix and called(name, UNDECAYED)), name
