"""The picture of docs/signals.md, and its table of errors.

python docs/pictures/signals.py [FOLDER]     writes signals-rate.svg (here, unless told), prints the table
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import hybridlm as hl

INK, FAINT = "#1f2933", "#8895a3"
COLOURS = {"s4": "#2a9d8f", "s4d": "#30638e", "s5": "#d1495b"}
STYLE = {"font.size": 9, "text.color": INK, "axes.edgecolor": FAINT, "svg.hashsalt": "hybridlm"}
TRAINED = 100  # samples a second that a time scale of 1 stands for
RATES = (100, 200, 400, 800, 1600)
SECONDS = 3.0


# ------------------------------------------------------------------------------------------------------------- numbers
def model(mixer: str) -> hl.HybridLM:
    """Two layers that have learned nothing: one channel in, one number out at every step."""
    blocks = {"x": {"mixer": {"type": mixer, "d_state": 16}}}
    ends = {"embed": {"type": "linear", "channels": 1}, "head": {"type": "regress", "outputs": 1}}
    return hl.build(pattern="x2", blocks=blocks, d_model=32, seed=0, dtype=torch.float64, **ends).eval()


def signal(rate: int) -> tuple[Tensor, Tensor]:
    """Times and a smooth signal that begins at 0, (t,) each, a sample at the end of every step."""
    t = torch.arange(1, round(rate * SECONDS) + 1, dtype=torch.float64) / rate
    return t, torch.sin(6 * t) + torch.exp(-t) * torch.sin(2.5 * t)


@torch.no_grad()
def answers(of: hl.HybridLM, rate: int, scale: float) -> Tensor:
    """(t,) what the model makes of the signal at a rate, under a time scale."""
    of.set_time_scale(scale)
    return of(signal(rate)[1][None, :, None]).logits[0, :, 0]


def error(of: hl.HybridLM, rate: int, told: bool = True) -> float:
    """Relative RMS between the answers at `rate` and at half of it, with twice the step if the model is told."""
    whole = answers(of, rate, TRAINED / rate)[1::2]
    half = answers(of, rate // 2, (2 if told else 1) * TRAINED / rate)
    return ((half - whole).norm() / whole.norm()).item()


def table() -> str:
    """The table of the page, in Markdown."""
    models = {name: model(name) for name in COLOURS}
    lines = [f"| full rate | {' | '.join(models)} | s4d, not told |", "|---|---|---|---|---|"]
    for rate in RATES:
        errors = [error(of, rate) for of in models.values()] + [error(models["s4d"], rate, told=False)]
        lines.append(f"| {rate} | {' | '.join(f'{number:.1e}' for number in errors)} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------- picture
def draw_rate() -> Figure:
    """Left: what a model answers over time at the full rate and at half of it. Right: how far apart the two are."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    of, (t, _), (half, _) = model("s4d"), signal(TRAINED), signal(TRAINED // 2)
    left.plot(t, answers(of, TRAINED, 1), color=INK, linewidth=1.2, label=f"{TRAINED} samples a second")
    told, blind = answers(of, TRAINED // 2, 2), answers(of, TRAINED // 2, 1)
    left.plot(half, told, ".", markersize=3, color=COLOURS["s4d"], label="half of them, set_time_scale(2)")
    left.plot(half, blind, color=FAINT, linewidth=1, linestyle="--", label="half of them, not told")
    left.set_ylim(-1.2, 1)
    _plain(left, "s4d: answers", "seconds", "answer")
    for name, colour in COLOURS.items():
        right.loglog(RATES, [error(model(name), rate) for rate in RATES], "o-", color=colour, markersize=3, label=name)
    blind = [error(of, rate, told=False) for rate in RATES]
    right.loglog(RATES, blind, color=FAINT, linewidth=1, linestyle="--", label="s4d, not told")
    _plain(right, "difference between full and half rate, relative", "full rate (samples a second)", "")
    return figure


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=7, frameon=False)


PICTURES = {"signals-rate": draw_rate}


def main(folder: Path) -> None:
    """Write the picture into the folder; the same bytes in every run."""
    for name, draw in PICTURES.items():
        with mpl.rc_context(STYLE):
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})
    print(table(), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
