"""The kit as a user meets it: results, the table, the command, what it refuses, and the models that it draws."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import hybridlm as hl
from hybridlm.errors import SpecError
from hybridlm.layers.attention import Attention
from hybridlm.ops.backend import Seen
from hybridlm.testing import LAWS, Result, Solo, assert_laws, check_mixer, check_model, report, require, violations
from hybridlm.testing.__main__ import main
from hybridlm.testing.laws.kernels import reasons
from hybridlm.testing.patterns import alphabet, specs
from hybridlm.testing.result import distance, measured, raises, same
from hybridlm.testing.subject import SMALL


class Deaf(Attention):
    """Hears nothing but the token itself."""

    def forward(self, x, state=None, ctx=None):
        return x, super().forward(x, state, ctx)[1]


# ------------------------------------------------------------------------------------------------------------ measuring
def test_no_numbers_are_not_wrong():
    assert distance(torch.empty(3, 0), torch.empty(3, 0)) == (0.0, 0.0)


def test_distance_sees_one_bad_token():
    want = torch.ones(1000, 4, dtype=torch.float64)
    got = want.clone()
    got[7] += 0.1
    error, worst = distance(got, want)
    assert error == pytest.approx(0.1 / 1000**0.5)
    assert worst == pytest.approx(0.1)
    assert measured("", got, want, limit=0.005).verdict == "failed"
    assert measured("", got, want, limit=0.011).verdict == "passed"


def test_nan_is_infinitely_wrong():
    want = torch.ones(3, 2)
    assert distance(torch.tensor([[1.0, 1], [torch.nan, 1], [1, 1]]), want) == (torch.inf, torch.inf)


def test_zero_is_no_reference():
    assert measured("", torch.zeros(3, 2), torch.zeros(3, 2), 1.0).verdict == "failed"


def test_a_wrong_shape_is_not_broadcast():
    with pytest.raises(AssertionError, match=r"shape \(1, 2\)"):
        distance(torch.ones(1, 2), torch.ones(3, 2))


def test_same_is_bit_for_bit():
    assert same("", torch.ones(2), torch.ones(2)).verdict == "passed"
    assert same("", torch.ones(2), torch.ones(2) + 1e-7).error == pytest.approx(1.2e-7, rel=0.01)


def test_raises_wants_just_this_error():
    def fail():
        raise KeyError("x")

    assert raises("", KeyError, fail).verdict == "passed"
    assert "KeyError" in raises("", IndexError, fail).detail
    assert raises("", KeyError, lambda: None).verdict == "failed"


# --------------------------------------------------------------------------------------------------- results, the table
def test_results_carry_their_law_and_their_limit():
    results = check_mixer("attention", laws=["C1", "C4"])
    assert {r.law for r in results} == {"C1", "C4"}
    assert all(r.verdict == "passed" and r.error <= r.limit and r.worst <= 10 * r.limit for r in results)
    assert {r.limit for r in check_mixer("attention", dtype=torch.float64, laws=["C4"])} == {1e-12}


def test_a_refusal_counts_only_where_it_is_allowed():
    refused = [Result(law, "x", 0, 0, 0, "refused") for law in ("C2", "C9")]
    assert [r.law for r in violations(refused)] == ["C2"]


def test_broken_laws_raise_with_their_cases():
    with pytest.raises(AssertionError, match="C1 an earlier token matters: failed"):
        assert_laws(Deaf, laws=["C1"])
    assert_laws(Attention, laws=["C1"])


def test_what_is_raised_becomes_a_result():
    class Broken(Attention):
        def forward(self, x, state=None, ctx=None):
            raise RuntimeError("out of luck")

    (found,) = check_mixer(Broken, laws=["C4"])
    assert found.verdict == "failed"
    assert "out of luck" in found.detail


def test_report_shows_every_law_and_every_mixer():
    text = io.StringIO()
    found = {"attention": check_mixer("attention", laws=["C1", "C9"]), "deaf": check_mixer(Deaf, laws=["C1"])}
    report(found, console=Console(file=text, width=120))
    lines = text.getvalue()
    assert "C1" in lines
    assert LAWS["C9"].title[:20] in lines
    assert "2.0e-06" in lines
    assert "deaf: C1 an earlier token matters: failed" in lines


# ---------------------------------------------------------------------------------------------------------- the command
def test_command_passes(capsys):
    assert main(["attention", "s4", "--laws", "C1", "C13"]) == 0
    assert "0 break a law" in capsys.readouterr().out


def test_command_takes_a_class_and_fails_on_a_broken_law(capsys, monkeypatch):
    monkeypatch.setattr("hybridlm.layers.attention.Deaf", Deaf, raising=False)
    assert main(["hybridlm.layers.attention:Deaf", "--laws", "C1"]) == 1
    assert "an earlier token matters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mamba3x"], "unknown mixer 'mamba3x'"),
        (["attention", "--laws", "C99"], "unknown law 'C99'"),
        (["attention", "--backend", "cuda"], "unknown backend 'cuda'"),
        (["no.such.module:X"], "cannot be imported"),
    ],
)
def test_command_says_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_command_helps(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "python -m hybridlm.testing mamba2" in text
    assert "bfloat16" in text


# --------------------------------------------------------------------------------------------------------------- inputs
def test_unknown_config_field():
    with pytest.raises(SpecError, match="d_stat"):
        check_mixer("mamba", config={"d_stat": 3})


def test_config_is_an_instance_or_a_mapping():
    given = Attention.Config(heads=2, rope=False)
    assert Solo("attention", config=given).config == Solo("attention", config={"heads": 2, "rope": False}).config


@pytest.mark.parametrize("name", hl.mixers.names())
@pytest.mark.parametrize("d_model", [31, 32, 33, 97])
def test_every_mixer_can_be_tried_at_any_width(name, d_model):
    """A small size that does not divide the width is left out, and all that do are taken."""
    mixer = hl.mixers.get(name)
    solo, fields = Solo(name, d_model=d_model), SMALL.keys() & mixer.Config.__dataclass_fields__.keys()
    kept = {field for field in fields if getattr(solo.config, field) == SMALL[field]}
    assert fields - kept <= {"head_dim"}
    if fields - kept:
        with pytest.raises(SpecError, match="head_dim"):
            Solo(name, config={field: SMALL[field] for field in fields}, d_model=d_model)


def test_laws_are_found_on_models_too():
    results = check_model({"pattern": "[mamba]", "blocks": alphabet(), "d_model": 32, "vocab_size": 16}, laws=["C24"])
    require(results)
    assert len(results) >= 5


@given(spec=st.sampled_from([32, 33, 97]).flatmap(lambda d_model: specs(d_model=d_model)))
def test_drawn_specs_are_legal(spec):
    with torch.device("meta"):
        built = hl.build(**spec, device="meta")
    assert 1 <= len(built.blocks) <= 24


# ------------------------------------------------------------------------------------------------------------ backends
def test_a_backend_on_which_nothing_ran_is_said_and_nothing_else():
    """The reference would answer for it, and keep every law."""
    (only,) = check_mixer("s4", "vendor")
    assert (only.law, only.verdict) == ("C15", "refused")
    assert "s4_scan" in only.detail
    assert "has no vendor backend" in only.detail
    with pytest.raises(AssertionError, match="1 cases break a law"):
        assert_laws("s4", "vendor", laws=["C1"])


def test_a_backend_on_which_something_ran_is_named():
    ran = [r.case for r in check_mixer("attention", "vendor", laws=["C15"])]
    assert ran == ["attention ran on vendor"]
    assert {r.law for r in check_mixer("attention", "vendor", laws=["C1", "C3"])} == {"C1", "C3"}
    assert "ssd ran on reference" in [r.case for r in check_mixer("mamba2", laws=["C15"])]


def test_why_an_op_ran_elsewhere():
    seen = [Seen("ssd", "reference", (("vendor", "it needs a GPU"),)), Seen("norm", "reference", ())]
    assert reasons(seen, "vendor") == "ssd: it needs a GPU; norm: has no vendor backend"


def test_kernels_may_be_twice_as_far_off_as_plain_pytorch():
    by_backend = {name: Solo("attention", backend=name).kernels for name in ("auto", "reference", "vendor", "triton")}
    assert by_backend == {"auto": False, "reference": False, "vendor": True, "triton": True}
    plain, kernels = (Solo("attention", dtype=torch.bfloat16, backend=name) for name in ("reference", "vendor"))
    assert kernels.allowed(lambda trace: trace.y) == pytest.approx(plain.allowed(lambda trace: trace.y) * 2 / 1.25)


def test_the_command_counts_no_mixer_that_has_nothing_to_run(capsys):
    assert main(["s4", "--backend", "vendor", "--laws", "C15"]) == 1
    assert main(["--backend", "vendor", "--laws", "C15", "--dtype", "float64"]) == 0
    out = capsys.readouterr().out
    assert "rwkv7" in out
    assert "ref." in out
    assert "0 break a law" in out
