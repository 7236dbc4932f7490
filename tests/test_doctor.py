"""`hybridlm doctor`: what it asks, what it says on machines that are not this one, and when it fails."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from hybridlm.cli import doctor_page, main, what_runs
from hybridlm.cli.doctor import examine
from hybridlm.cli.known_bad import KNOWN, Machine, known_bad
from hybridlm.cli.self_test import _milliseconds, self_test
from hybridlm.ops import backend, packages
from hybridlm.ops.draw import TINY
from hybridlm.ops.examples import OPS, draw
from hybridlm.ops.packages import PACKAGES, install

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEALTHY = Machine({"torch": "2.13.0", "triton": "3.7.1", "lightning": "2.6.6"}, (9, 0), 92600, {})


@pytest.fixture
def run(capsys):
    """run("M", "--json") -> (exit code, stdout, stderr)."""

    def call(*argv: str):
        code = main(["doctor", *argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def hopper(monkeypatch):
    """A machine with a GPU of compute capability 9.0, on which no optional package is installed."""
    monkeypatch.setattr(backend, "capability", lambda: (9, 0))
    monkeypatch.setattr(packages, "found_version", lambda name: "2.11.0+cu130" if name == "torch" else None)


# ------------------------------------------------------------------------------------------------------------- machine
def test_without_a_gpu_nothing_is_to_be_gained(run):
    code, out, _ = run("--skip-self-test")
    assert code == 0
    for text in ("torch", "mamba-ssm", "cpu", "nothing to gain"):
        assert text in out
    assert "pip install" not in out
    assert "self-test" not in out


def test_of_a_model_too_nothing_is_to_be_gained_on_a_cpu(run, monkeypatch):
    """What a package lacks there is the GPU, and no installation brings one."""
    monkeypatch.setattr(backend, "INTERPRETING", False)
    monkeypatch.setattr(backend, "triton_missing", lambda: "triton is not installed")
    found = json.loads(run("MmA", "--skip-self-test", "--device", "cpu", "--json")[1])
    for text in ("causal_conv1d needs a GPU", "Triton needs a GPU"):
        assert text in str(found["layers"])
    assert found["faster"] == []


def test_with_a_gpu_the_command_that_installs_what_is_missing(hopper, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    lines = {row["package"]: row["install"] for row in examine()["optional"]}
    assert lines["triton"] == "'/opt/my python/bin/python' -m pip install torch==2.11.0 'triton>=3.3'"
    assert lines["mamba-ssm"] == (
        "MAMBA_KEEP_CUDA_BUILD=TRUE '/opt/my python/bin/python' -m pip install "
        "--no-build-isolation torch==2.11.0 'mamba-ssm>=2.2.4'"
    )
    assert all(row["trouble"] is None for row in examine()["optional"])


def test_a_package_that_is_there_but_broken_is_told_and_can_be_installed_again(hopper, monkeypatch):
    monkeypatch.setattr(packages, "found_version", lambda name: "2.0")
    monkeypatch.setattr(packages, "missing", lambda module, _: f"{module} is broken here: undefined symbol: x")
    about = examine()
    assert all("undefined symbol" in row["trouble"] and row["install"] for row in about["optional"])
    assert {row["name"] for row in about["known_bad"]} >= {"flash-attn built for another torch"}


def test_a_hidden_package_is_told_and_not_to_be_installed(hopper, monkeypatch):
    monkeypatch.setattr(packages, "found_version", lambda name: "2.0")
    monkeypatch.setattr(packages, "missing", lambda module, _: "mamba_ssm is hidden" if "mamba" in module else None)
    monkeypatch.setenv("HYBRIDLM_WITHOUT", "mamba-ssm")
    lines = {row["package"]: (row["trouble"], row["install"]) for row in examine()["optional"]}
    assert lines["mamba-ssm"] == ("mamba_ssm is hidden", None)
    assert lines["flash-attn"] == (None, None)


def test_the_packages_are_those_of_the_extras():
    extras = PROJECT["optional-dependencies"]
    for package in PACKAGES:
        assert any(line.startswith(package.name + package.wanted) for line in extras[package.extra]), package
    assert {package.extra for package in PACKAGES} == {"gpu", "mamba", "flash"}


# ------------------------------------------------------------------------------------------------------- known trouble
@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"versions": {"triton": "3.4.0"}}, "triton 3.4 to 3.7.0 on Hopper"),
        ({"versions": {"triton": "3.7.0"}}, "triton 3.4 to 3.7.0 on Hopper"),
        ({"cudnn": 92500}, "cuDNN attention with a mask on Hopper"),
        ({"troubles": {"mamba-ssm": "mamba_ssm was built without selective_scan_cuda"}}, "mamba-ssm without its scan"),
        ({"troubles": {"flash-attn": "broken: undefined symbol: _ZN3"}}, "flash-attn built for another torch"),
        ({"troubles": {"mamba-ssm": "broken: undefined symbol: _ZN3"}}, "mamba-ssm built for another torch"),
        ({"troubles": {"causal-conv1d": "broken: undefined symbol: x"}}, "causal-conv1d built for another torch"),
        ({"versions": {"lightning": "2.6.2"}}, "lightning 2.6.2 and 2.6.3"),
        ({"versions": {"pytorch-lightning": "2.6.3.post1"}}, "lightning 2.6.2 and 2.6.3"),
        ({"unseen_gpu": True}, "a GPU that torch does not use"),
    ],
)
def test_known_trouble(changed, name):
    assert [row["name"] for row in known_bad(HEALTHY._replace(**changed))] == [name]


def test_no_trouble_where_there_is_none():
    assert known_bad(HEALTHY) == []
    assert known_bad(HEALTHY._replace(versions={"triton": "3.5.0"}, capability=(8, 0), cudnn=91000)) == []
    assert known_bad(Machine({"lightning": "2.6.1"}, None, None, {"flash-attn": None})) == []
    assert all(known.source.startswith("https://") for known in KNOWN)


# -------------------------------------------------------------------------------------------------------------- layers
def test_every_layer_is_asked(run):
    code, out, _ = run("(M3A)2S<m|W>-", "--json", "--skip-self-test")
    layers = json.loads(out)["layers"]
    assert code == 0
    assert [layer["block"] for layer in layers] == ["M", "A", "S", "<m|W>", "-"]
    ops = {layer["block"]: {op["op"] for op in layer["training"]} for layer in layers}
    assert "ssd" in ops["M"]
    assert "attention" in ops["A"]
    assert "cached_attention" in {op["op"] for op in layers[1]["decoding"]}
    assert "long_conv" in ops["S"]
    assert {"selective_scan", "attention"} <= ops["<m|W>"]
    assert all(op["backend"] in ("reference", "vendor", "triton") for layer in layers for op in layer["decoding"])
    assert run("(M3A)2S<m|W>-", "--skip-self-test")[0] == 0


def test_why_a_backend_was_passed_over_and_what_would_be_faster(hopper, run, monkeypatch):
    why = {"ssd": (("triton", "it takes bf16 only"), ("vendor", "mamba_ssm is not installed"))}
    seen = [backend.Seen("ssd", "reference", why["ssd"]), backend.Seen("attention", "vendor")]
    row, other = map(what_runs._row, seen)
    assert row["why"] == "plain PyTorch (triton: it takes bf16 only; vendor: mamba_ssm is not installed)"
    assert other["why"] == "a fused kernel takes these shapes on this device"
    layer = {"block": "M", "count": 3, "training": [row, other], "decoding": [row]}
    (gain,) = what_runs.faster([layer])
    assert (gain["package"], gain["ops"]) == ("mamba-ssm", ["ssd"])
    assert gain["install"] == install([PACKAGES[1]])
    assert what_runs.faster([layer | {"training": [other], "decoding": []}]) == []
    rows = doctor_page._layer_rows(layer)
    assert [row[2:5] for row in rows] == [
        ("training", "ssd", "reference"),
        ("training", "attention", "vendor"),
        ("decoding", "ssd", "reference"),
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_layers_are_asked_in_the_dtype_of_the_compute(monkeypatch, dtype):
    """In training float32 weights under autocast, in decoding weights of that dtype."""
    seen, call = [], what_runs._call

    def look(block, spec, device, tokens):
        seen.append(
            (tokens > 1, next(block.parameters()).dtype, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())
        )
        call(block, spec, device, tokens)

    monkeypatch.setattr(what_runs, "_call", look)
    assert all(op["op"] != "?" for layer in what_runs.layers("M", "cpu", dtype) for op in layer["training"])
    cast = dtype == "bfloat16"
    assert seen == [(True, torch.float32, cast, True), (False, getattr(torch, dtype), False, False)]


# ----------------------------------------------------------------------------------------------------------- self-test
def test_every_op_of_the_model_passes(run):
    code, out, _ = run("MA", "--json")
    rows = json.loads(out)["self_test"]
    assert code == 0
    assert {"ssd", "attention", "causal_conv1d", "rms_norm"} <= {row["op"] for row in rows}
    assert all(row["passed"] and row["cases"] and row["milliseconds"] > 0 for row in rows)


def test_without_a_model_every_op_is_tested():
    assert [row["op"] for row in self_test("cpu", "float32")] == list(OPS)


def test_an_op_that_is_wrong_fails_and_so_does_one_that_raises(run, monkeypatch):
    from hybridlm.ops import norm

    def wrong(x, weight, eps):
        return norm.reference.rms_norm(x, weight, eps) * (1 + 1e-3 * (x.dtype == torch.float32))

    def offers(op, name, found):
        return backend.resolve(op, name, {"vendor": wrong, **found})

    monkeypatch.setattr(norm, "resolve", offers)
    code, out, _ = run("A", "--json")
    row = next(row for row in json.loads(out)["self_test"] if row["op"] == "rms_norm")
    assert code == 1
    assert (row["passed"], row["backend"]) == (False, "vendor")
    assert row["strain"] > 100
    assert "FAIL" in run("A")[1]
    monkeypatch.setattr(norm, "resolve", lambda *_: 1 / 0)
    (row,) = self_test("cpu", "float32", ["rms_norm"])
    assert (row["passed"], row["detail"]) == (False, "ZeroDivisionError: division by zero")


def test_an_error_without_a_word_is_told_too(monkeypatch):
    from hybridlm.ops import norm

    def silent(*_):
        raise NotImplementedError

    monkeypatch.setattr(norm, "resolve", silent)
    (row,) = self_test("cpu", "float32", ["rms_norm"])
    assert (row["passed"], row["detail"]) == (False, "NotImplementedError: it says no more")


def test_any_accelerator_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for device in ("cpu", "mps", "cuda:1"):
        _milliseconds(draw("rms_norm", "plain", TINY), device)
    assert waited == ["mps", "mps", "cuda:1", "cuda:1"]


def test_a_device_without_float64_is_looked_at_and_not_tested(run, monkeypatch):
    def zeros(*size, dtype=None, **where):
        if dtype == torch.float64:
            raise TypeError("this device has no float64")
        return make(*size, dtype=dtype, **where)

    make = torch.zeros
    monkeypatch.setattr(torch, "zeros", zeros)
    code, out, err = run("--device", "cpu")
    assert (code, out) == (2, "")
    assert "cpu has no float64" in err
    assert run("--device", "cpu", "--skip-self-test")[0] == 0


def test_a_device_or_dtype_that_is_not_there(run):
    for name, value, said in (
        ("device", "cuda:7", "cuda"),
        ("device", "tpux", "tpux"),
        ("device", "meta", "no numbers"),
        ("dtype", "int8", "int8"),
    ):
        code, out, err = run("M", f"--{name}", value)
        assert (code, out) == (2, "")
        assert said in err
