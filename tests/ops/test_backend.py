"""Which backend runs a call, and what is said of those that do not."""

import pytest
import torch

from hybridlm.errors import SpecError, UnsupportedError
from hybridlm.ops import backend
from hybridlm.ops.backend import INTERPRETING, Offer, Seen, found, kernels, missing, resolve, trace, use


def fast() -> None: ...
def slow() -> None: ...


ABLE = {"vendor": fast, "reference": slow}
UNABLE = {"vendor": Offer(fast, lacks="it takes bf16 only"), "reference": slow}
SHY = {"vendor": Offer(fast, asked="it is off by 1e-6"), "reference": slow}


def test_auto_takes_the_first_offer_and_an_explicit_backend_its_own():
    assert resolve("op", "auto", ABLE) is fast
    assert resolve("op", "reference", ABLE) is slow
    with use("reference"), trace() as seen:
        assert resolve("op", "auto", ABLE) is slow
        assert resolve("op", "vendor", ABLE) is fast
    assert [(one.op, one.backend) for one in seen] == [("op", "reference"), ("op", "vendor")]
    assert resolve("op", "auto", ABLE) is fast


def test_auto_passes_over_what_cannot_take_the_call_and_says_why():
    with trace() as seen:
        assert resolve("op", "auto", UNABLE) is slow
    assert seen == [Seen("op", "reference", (("vendor", "it takes bf16 only"),))]
    with pytest.raises(UnsupportedError, match="op: backend 'vendor' cannot take this call: it takes bf16 only"):
        resolve("op", "vendor", UNABLE)


def test_a_backend_is_asked_what_it_lacks_only_when_its_turn_comes():
    def never() -> str:
        raise AssertionError("asked")

    assert resolve("op", "auto", {"triton": fast, "vendor": Offer(slow, never), "reference": slow}) is fast
    late = {"triton": Offer(fast, lambda: "not now"), "vendor": Offer(fast, lambda: None), "reference": slow}
    with trace() as seen:
        assert resolve("op", "auto", late) is fast
    assert seen == [Seen("op", "vendor", (("triton", "not now"),))]
    with pytest.raises(UnsupportedError, match="cannot take this call: not now"):
        resolve("op", "triton", late)
    with use("triton"):
        assert resolve("op", "auto", late) is slow


def test_what_has_to_be_asked_for_is_taken_when_it_is():
    with trace() as seen:
        assert resolve("op", "auto", SHY) is slow
    assert seen == [Seen("op", "reference", (("vendor", "it is off by 1e-6"),))]
    assert resolve("op", "vendor", SHY) is fast
    with use("vendor"):
        assert resolve("op", "auto", SHY) is fast


def test_within_use_calls_that_the_backend_does_not_take_go_to_the_reference():
    with use("vendor"):
        assert resolve("op", "auto", UNABLE) is slow
    with use("triton"):
        assert resolve("op", "auto", ABLE) is slow


def test_where_derivatives_are_taken_forward_only_the_reference_runs():
    """A kernel would drop what comes with a tensor, and say nothing."""
    asked = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UnsupportedError, match="'vendor' cannot take this call: derivatives are taken forward"):
            resolve("op", "vendor", ABLE)
        with use("vendor"):
            asked.append(resolve("op", "auto", ABLE))
        asked.append(resolve("op", "auto", ABLE))
        return 2 * x

    x = torch.ones(())
    with torch.autograd.forward_ad.dual_level():
        ask(x)
    torch.func.jvp(ask, (x,), (x,))
    torch.func.hessian(ask)(x)
    assert asked == [slow] * 6
    assert resolve("op", "auto", ABLE) is fast


def test_a_backend_that_is_missing_or_unknown_is_said_to_be():
    with pytest.raises(UnsupportedError, match="no 'triton' backend"):
        resolve("op", "triton", {"reference": slow})
    with pytest.raises(SpecError, match="Did you mean 'triton'"):
        resolve("op", "tritn", {"reference": slow})


def test_an_absent_package_a_broken_one_and_an_absent_part_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "broken_kernels.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    (tmp_path / "needy_kernels.py").write_text("import package_that_nobody_has")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing("absent_kernels.scan", "scan") == "absent_kernels is not installed"
    assert missing("broken_kernels", "scan") == "broken_kernels is broken here: OSError: undefined symbol: _ZN3c10"
    assert missing("needy_kernels", "scan") == "needy_kernels is not whole: it needs package_that_nobody_has"
    assert missing("math", "scan") == "math was built without scan"
    assert found("math", "sqrt")(4) == 2
    with pytest.raises(UnsupportedError, match="absent_kernels is not installed"):
        found("absent_kernels.scan", "scan")


def test_probing_is_a_constant_to_the_compiler():
    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if missing("absent_kernels", "scan") else x

    assert torch.compile(choose, fullgraph=True, backend="eager")(torch.zeros(())) == 1


def test_what_is_exported_is_told_from_what_is_compiled():
    """An exported program runs without our ops and kernels; what is compiled here has them."""

    class Asks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if backend.exporting() else x

    x = torch.zeros(1)
    assert torch.compile(Asks(), fullgraph=True, backend="eager")(x) == Asks()(x) == 0
    assert torch.export.export(Asks(), (x,), strict=False).module()(x) == 1


def test_on_a_cpu_triton_has_to_be_asked_for():
    assert backend.triton_asked(torch.zeros(())) is not None


@pytest.mark.skipif(not INTERPRETING, reason="no Triton here")
def test_the_compiler_finds_several_modules_of_kernels_that_nobody_has_asked_for_before(monkeypatch):
    monkeypatch.setattr(backend, "_loaded", {})

    def use_two(x: torch.Tensor) -> torch.Tensor:
        one, other = kernels("hybridlm.ops.linear.triton"), kernels("hybridlm.ops.cross_entropy.triton")
        return x + (one.WIDEST if one else 0) + (other.BLOCK if other else 0)

    sum_of_both = use_two(torch.zeros(()))
    monkeypatch.setattr(backend, "_loaded", {})
    assert torch.compile(use_two, fullgraph=True, backend="eager")(torch.zeros(())) == sum_of_both > 4096


def test_a_hidden_package_is_as_if_it_were_not_there(monkeypatch):
    """By the name of its module or of its distribution. json and einops stand for one that is there."""
    monkeypatch.setattr(backend, "_probe", backend._probe.__wrapped__)
    assert backend.missing("json", "loads") is None
    monkeypatch.setenv("HYBRIDLM_WITHOUT", "flash-attn, json")
    assert backend.hidden() == ["flash_attn", "json"]
    assert backend.missing("json", "loads") == "json is hidden by HYBRIDLM_WITHOUT"
    assert backend.missing("json.decoder", "JSONDecoder") is not None
    assert backend.missing("einops", "rearrange") is None
    with pytest.raises(UnsupportedError, match="flash_attn is hidden by HYBRIDLM_WITHOUT"):
        found("flash_attn", "flash_attn_func")


def test_without_triton_there_are_no_kernels_of_ours(monkeypatch):
    monkeypatch.setattr(backend, "_probe", backend._probe.__wrapped__)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(backend, "_loaded", {})
    monkeypatch.setenv("HYBRIDLM_WITHOUT", "triton")
    assert backend.triton_missing() == "triton is hidden by HYBRIDLM_WITHOUT"
    assert kernels("hybridlm.ops.ssd.triton") is None
