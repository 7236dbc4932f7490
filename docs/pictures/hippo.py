"""The pictures of docs/hippo.md, and its table of errors.

python docs/pictures/hippo.py [FOLDER]     writes four .svg files (here, unless told), prints the table
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hybridlm.ops.hippo import MEASURES, basis, diagonal, kernel, project_scaled, reconstruct, transition

INK, FAINT = "#1f2933", "#8895a3"
COLOURS = ["#30638e", "#d1495b", "#edae49", "#2a9d8f", "#7b5ea7", "#b5651d", "#5a9bc9"]
STYLE = {"font.size": 9, "text.color": INK, "axes.edgecolor": FAINT, "svg.hashsalt": "hybridlm"}
TITLES = {
    "legs": "legs: Legendre, scaled",
    "legt": "legt: Legendre, a window",
    "lagt": "lagt: Laguerre, fading",
    "fourier": "fourier: waves, a window",
}
SPAN = {"legs": 5.0, "legt": 1.0, "lagt": 12.0, "fourier": 1.0}  # ages that are drawn
SIZES = (4, 8, 16, 32, 64, 128)
SAMPLES = 1000


# ------------------------------------------------------------------------------------------------------------- numbers
def signal(u: Tensor) -> Tensor:
    """Four sines of 1, 2, 3 and 5 cycles over [0, 1]."""
    return sum(torch.sin(2 * math.pi * w * u + w) for w in (1, 2, 3, 5))


def remembered(n: int, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Times in [0, 1], the signal, and what LegS's own update remembers of it after SAMPLES samples."""
    u = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    state = project_scaled(signal(u)[None], n, method)[0, -1]
    return u, signal(u), reconstruct("legs", state, -torch.log(u))


def error(n: int, method: str) -> float:
    """Relative RMS error of the reconstruction."""
    _, f, g = remembered(n, method)
    return ((g - f).norm() / f.norm()).item()


def table() -> str:
    """The table of the page, in Markdown: the error for every state size."""
    lines = ["| n | zoh | bilinear |", "|---|---|---|"]
    lines += [f"| {n} | {error(n, 'zoh'):.1e} | {error(n, 'bilinear'):.1e} |" for n in SIZES]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------ pictures
def draw_basis() -> Figure:
    """p_i(s), i < 5, of every measure."""
    figure = _four_panels(lambda measure, s: basis(measure, 6, s), "p_i(s)", 1.0)
    figure.axes[2].set_ylim(-6, 8)  # Laguerre's polynomials grow without bound; e^-s tames them
    return figure


def draw_kernels() -> Figure:
    """e^{sA} B of 32 states, the first five drawn: what an impulse leaves in them. A window is drawn twice over."""
    return _four_panels(lambda measure, s: kernel(measure, 32, s), "(e^{sA} B)_i", 2.0)


def _four_panels(curves: Callable[[str, Tensor], Tensor], name: str, windows: float) -> Figure:
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    for axes, measure in zip(figure.subplots(2, 2).flat, MEASURES, strict=True):
        _plain(axes, TITLES[measure], "age s", f"${name}$")
        last = SPAN[measure] * (windows if SPAN[measure] == 1 else 1)
        s = torch.linspace(0, last, 161, dtype=torch.float64)
        values = curves(measure, s)
        shown = [0, 2, 3, 4, 5] if measure == "fourier" else range(5)  # state 1 of fourier is silent
        for i, colour in zip(shown, COLOURS, strict=False):
            axes.plot(s, values[:, i], color=colour, linewidth=1.4, label=f"i = {i}")
        axes.legend(fontsize=7, frameon=False, ncols=5, loc="upper center", columnspacing=0.8, handlelength=1)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.18 * (high - low))
    return figure


def draw_reconstruction() -> Figure:
    """The signal and what states of 8, 16, 32 remember of it; the error against the size of the state."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _plain(left, f"the past that a state remembers, {SAMPLES} samples read one by one", "time", "")
    for n, colour in zip((8, 16, 32), COLOURS, strict=False):
        u, f, g = remembered(n, "zoh")
        left.plot(u[::5], g[::5], color=colour, linewidth=1.4, label=f"n = {n}")
    left.plot(u[::5], f[::5], color=INK, linewidth=1, linestyle=(0, (2, 2)), label="signal")
    left.legend(fontsize=7, frameon=False, ncols=4, loc="lower left")
    _plain(right, "error of the reconstruction", "state size n", "relative RMS")
    for method, colour in zip(("zoh", "bilinear"), COLOURS, strict=False):
        right.loglog(SIZES, [error(n, method) for n in SIZES], "o-", color=colour, markersize=4, label=method)
    right.set_xticks(SIZES, [str(n) for n in SIZES], minor=False)
    right.minorticks_off()
    right.legend(fontsize=7, frameon=False)
    return figure


def draw_eigenvalues() -> Figure:
    """Of A itself, 16 states; and of the diagonal forms, 64 states, one of each couple."""
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plain(left, "eigenvalues of A, n = 16", "Re", "Im")
    for measure, colour in zip(MEASURES, COLOURS, strict=False):
        A, _ = transition(measure, 16)
        triangular = not A.triu(diagonal=1).any()  # its eigenvalues are read off: it is not to be diagonalised
        values = A.diag() + 0j if triangular else torch.linalg.eigvals(A)
        left.plot(values.real, values.imag, "o", color=colour, markersize=4, alpha=0.8, label=measure)
    left.legend(fontsize=7, frameon=False)
    _plain(right, "diagonal forms, n = 64, the upper half", "Re", "Im")
    kinds = ("legs", "lin", "inv", "real", "legt", "lagt", "fourier")
    for place, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=True)):
        Lambda = diagonal(kind, 64)
        shift = 0.0 if kind == "real" else 0.04 * (place - 3)  # so that a line of points does not hide another
        right.plot(Lambda[:, 0] + shift, Lambda[:, 1], ".", color=colour, markersize=4, label=kind)
    right.set_xscale("symlog", linthresh=1)
    right.set_yscale("symlog", linthresh=1)
    right.legend(fontsize=7, frameon=False)
    return figure


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.5)


PICTURES = {
    "hippo-basis": draw_basis,
    "hippo-kernels": draw_kernels,
    "hippo-reconstruction": draw_reconstruction,
    "hippo-eigenvalues": draw_eigenvalues,
}


def main(folder: Path) -> None:
    """Write every picture into the folder; the same bytes in every run."""
    for name, draw in PICTURES.items():
        with mpl.rc_context(STYLE):
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})
    print(table(), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
