"""SSD, the selective scan and the gated delta rule, ours and others'."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.ops.case import Case, Sizes, Tensors, Way, ours
from hybridlm.ops import backend
from hybridlm.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_flops
from hybridlm.ops.selective_scan import selective_scan
from hybridlm.ops.ssd import ssd, ssd_flops

CHECKED = 2
"""Heads of row 0 that are compared; channels are 16 times as many."""


def ssd_case(s: Sizes, length: int, n: int | None = None) -> Case:
    """State space duality."""
    n, b = n or s.n, s.rows(length)

    def draw() -> Tensors:
        given = {"x": s.normal(b, length, s.h, s.p), "dt": s.steps(b, length, s.h)}
        given["A"] = -(torch.rand(s.h, device=s.device) * 15 + 1)
        given |= {name: s.normal(b, length, 1, n) for name in ("B", "C")}
        return given | {"D": torch.ones(s.h, device=s.device)}

    def cut(g: Tensors) -> Tensors:
        few = {"x": g["x"][:1, :, :CHECKED], "dt": g["dt"][:1, :, :CHECKED], "A": g["A"][:CHECKED]}
        return few | {"B": g["B"][:1], "C": g["C"][:1], "D": g["D"][:CHECKED]}

    ways = ours(lambda g, name: ssd(**g, backend=name)[0])
    ways |= {"mamba_ssm": _mamba_ssd(), "fla": _fla_ssd(s.h)}
    return Case(
        f"ssd N={n}, L={length:,}", draw, ways, cut, lambda g: ssd(**g, backend="reference")[0],
        lambda y: y[:1, :, :CHECKED], "x", lambda g: g[:1, :, :CHECKED],
        flops=b * ssd_flops(length, s.h, s.p, 1, n, 64)[0], tokens=b * length,
    )  # fmt: skip


def _mamba_ssd() -> Way:
    module, name = "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"

    def run(g: Tensors) -> torch.Tensor:
        return backend.found(module, name)(g["x"], g["dt"], g["A"], g["B"], g["C"], chunk_size=256, D=g["D"])

    return Way(run, missing=lambda: backend.missing(module, name), label="chunk 256")


def _fla_ssd(heads: int) -> Way:
    """As gated linear attention: dt x is made before, B and C stand once a head, and there is no D."""
    module, name = "fla.ops.simple_gla", "chunk_simple_gla"

    def prepare(g: Tensors) -> Tensors:
        q, k = (g[name].expand(-1, -1, heads, -1).contiguous() for name in ("C", "B"))
        return {
            "q": q,
            "k": k,
            "v": (g["x"] * g["dt"][..., None]).to(g["x"].dtype),
            "g": g["dt"] * g["A"],
            "Dx": g["x"],
        }

    def run(g: Tensors) -> torch.Tensor:
        return backend.found(module, name)(g["q"], g["k"], g["v"], g=g["g"], scale=1.0)[0]

    return Way(run, prepare, missing=lambda: backend.missing(module, name), leaf="", label="without D x; B, C a head")


def scan_case(s: Sizes, length: int, n: int | None = None) -> Case:
    """The selective scan of Mamba-1."""
    n, b, few = n or s.scan_n, s.rows(length), 16 * CHECKED

    def draw() -> Tensors:
        given = {"x": s.normal(b, length, s.d), "dt": s.steps(b, length, s.d).to(s.dtype)}
        given["A"] = -torch.arange(1, n + 1, device=s.device).float().expand(s.d, n).contiguous()
        given |= {name: s.normal(b, length, n) for name in ("B", "C")}
        return given | {"D": torch.ones(s.d, device=s.device)}

    def cut(g: Tensors) -> Tensors:
        part = {name: g[name][:1, :, :few] for name in ("x", "dt")} | {"A": g["A"][:few], "D": g["D"][:few]}
        return part | {"B": g["B"][:1], "C": g["C"][:1]}

    ways = ours(lambda g, name: selective_scan(**g, backend=name)[0]) | {"mamba_ssm": _mamba_scan()}
    return Case(
        f"selective scan N={n}, L={length:,}", draw, ways, cut, lambda g: selective_scan(**g, backend="reference")[0],
        lambda y: y[:1, :, :few], "x", lambda g: g[:1, :, :few],
        special=float(b * length * s.d * n), tokens=b * length,
    )  # fmt: skip


def _mamba_scan() -> Way:
    """In its own layout, (b, d, t)."""
    module, name = "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"

    def prepare(g: Tensors) -> Tensors:
        turned = {name: g[name].mT.contiguous() for name in ("x", "dt", "B", "C")}
        return turned | {"A": g["A"].clone(), "D": g["D"].clone()}

    def run(g: Tensors) -> torch.Tensor:
        return backend.found(module, name)(g["x"], g["dt"], g["A"], g["B"], g["C"], g["D"])

    return Way(run, prepare, lambda y: y.mT, lambda: backend.missing(module, name))


def delta_case(s: Sizes, length: int) -> Case:
    """The gated delta rule, keys and values of width 2 p."""
    b, h, n = s.rows(length), max(1, s.h // 4), 2 * s.p

    def draw() -> Tensors:
        given = {"q": s.normal(b, length, h, n, scale=n**-0.5), "k": F.normalize(s.normal(b, length, h, n), dim=-1)}
        return given | {
            "v": s.normal(b, length, h, n), "decay": -s.steps(b, length, h),
            "beta": torch.rand(b, length, h, device=s.device),
        }  # fmt: skip

    def cut(g: Tensors) -> Tensors:
        return {name: tensor[:1, :, :1] for name, tensor in g.items()}

    ways = ours(lambda g, name: gated_delta_rule(**g, backend=name)[0]) | {"fla": _fla_delta()}
    return Case(
        f"gated delta rule, L={length:,}", draw, ways, cut, lambda g: gated_delta_rule(**g, backend="reference")[0],
        lambda y: y[:1, :, :1], "v", lambda g: g[:1, :, :1],
        flops=b * gated_delta_rule_flops(length, h, n, h, n, 64)[0], tokens=b * length,
    )  # fmt: skip


def _fla_delta() -> Way:
    module, name = "fla.ops.gated_delta_rule", "chunk_gated_delta_rule"

    def run(g: Tensors) -> torch.Tensor:
        return backend.found(module, name)(g["q"], g["k"], g["v"], g["decay"], g["beta"].to(g["v"].dtype), scale=1.0)[0]

    return Way(run, missing=lambda: backend.missing(module, name))
