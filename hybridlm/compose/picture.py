"""The picture of a model: its stack as coloured boxes; its state against the context, beside an all-attention twin."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridlm.compose.memory import dtype_name
from hybridlm.errors import SpecError
from hybridlm.files import atomic_write

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

    from hybridlm.compose.cost import ModelCost

SUFFIXES = (".svg", ".png")
INK, FAINT, PAPER = "#1f2933", "#8895a3", "#ffffff"
MLP_COLOUR = "#dfe4ea"
_NAMED = {
    "attention": "#d1495b",
    "sliding_window": "#edae49",
    "mla": "#a8324a",
    "mamba2": "#30638e",
    "mamba": "#5a9bc9",
    "s4": "#2a9d8f",
    "mamba3": "#16324f",
    "s4d": "#8ab17d",
    "s5": "#1f6f54",
    "h3": "#e07a3f",
    "linear_attention": "#556b2f",
    "gated_deltanet": "#8e5bb5",
    "rwkv7": "#b5651d",
    "short_conv": "#b9b44a",
    "lstm": "#c77dba",
    "gru": "#6d4c41",
}
_OTHERS = ["#7b5ea7", "#9fc490", "#cf7a2b", "#d98fce", "#748c3c", "#457b9d", "#9c6644"]  # for mixers of other packages

MOST_COLUMNS = 8
COLUMN = 24  # layers in a column, if they fit
CONTEXTS = [2**i for i in range(8, 21)]


def suffix_of(path: str | Path) -> str:
    """The format that a file's name asks for. SpecError: another suffix than .svg and .png, or no such folder."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(
            f"{path}: a picture is written as .svg or .png, not as {path.suffix or 'a file without suffix'}"
        )
    if not path.parent.is_dir():
        raise SpecError(f"{path}: the folder {path.parent} does not exist")
    return path.suffix.lower().removeprefix(".")


def colours(types: Sequence[str]) -> list[str]:
    """The colour of each mixer type; the same name has the same colour everywhere."""
    return [_NAMED.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)] for name in types]


def draw(cost: ModelCost, path: str | Path, *, batch: int = 1, dtype: torch.dtype | None = None) -> None:
    """Write the picture of a model to path (.svg or .png); the state is that of `batch` rows in `dtype`."""
    import matplotlib as mpl
    import torch
    from matplotlib.figure import Figure

    suffix, dtype = suffix_of(path), dtype or torch.float32
    layout = columns([layer.plan.name for layer in cost.layers])
    stack_width = 1.1 + 1.35 * len(layout)
    style = {"font.size": 9, "text.color": INK, "axes.edgecolor": FAINT, "svg.hashsalt": "hybridlm"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(stack_width + 6.4, 6.2), facecolor=PAPER)
        wide = figure.get_figwidth()
        stack = figure.add_axes((0.35 / wide, 0.05, stack_width / wide, 0.76))
        curve = figure.add_axes(((stack_width + 1.25) / wide, 0.115, 4.85 / wide, 0.635))
        _title(figure, cost)
        _legend(figure, cost)
        _draw_stack(stack, cost, layout)
        _draw_state(curve, cost, batch, dtype)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=160, metadata={"Date": None} if suffix == "svg" else None)
    atomic_write(path, buffer.getvalue())


def columns(names: Sequence[str]) -> list[list[int]]:
    """Layer indices in columns, from the bottom up, left to right; a column ends where the pattern's period does."""
    period = next(p for p in range(1, len(names) + 1) if all(a == b for a, b in zip(names, names[p:], strict=False)))
    height = max(COLUMN, -(-len(names) // MOST_COLUMNS))
    if period <= height < len(names):
        height = height // period * period
    return [list(range(len(names)))[i : i + height] for i in range(0, len(names), height)]


def _title(figure: Any, cost: ModelCost) -> None:
    spec, left = cost.stack.spec, 0.45 / figure.get_figwidth()
    room = int(figure.get_figwidth() * 7.5)
    pattern = spec.pattern if len(spec.pattern) <= room else spec.pattern[: room - 3] + "..."
    parts = [f"{len(cost.layers)} layers", f"d_model {spec.d_model}", f"{_count(cost.parameters)} parameters"]
    figure.text(left, 0.945, pattern, size=15, weight="bold", va="center", parse_math=False)
    figure.text(left, 0.898, "   ".join(parts), size=10, color=FAINT, va="center")


def _legend(figure: Any, cost: ModelCost) -> None:
    """What the colours mean, and how many of each there are."""
    from matplotlib.patches import Patch

    parts = [part.type for layer in cost.stack.layers for part in layer.mixers]
    parts += [layer.mlp.type for layer in cost.stack.layers if layer.mlp]
    counts = Counter(parts)
    mixing = {part.type for layer in cost.stack.layers for part in layer.mixers}
    chips = [
        Patch(color=colours([name])[0] if name in mixing else MLP_COLOUR, label=f"{name} \u00d7 {count}", linewidth=0)
        for name, count in counts.items()
    ]
    style = {"frameon": False, "fontsize": 8.5, "handlelength": 0.9, "handleheight": 0.9, "handletextpad": 0.45}
    place = (0.36 / figure.get_figwidth(), 0.875)
    figure.legend(handles=chips, loc="upper left", bbox_to_anchor=place, ncols=8, columnspacing=1.3, **style)


# --------------------------------------------------------------------------------------------------------------- stack
def _draw_stack(axes: Axes, cost: ModelCost, layout: list[list[int]]) -> None:
    """Columns of boxes between the embedding and the head; beside each mixer its MLP."""
    height = max(map(len, layout))
    slim = max(height, 10)
    axes.set_axis_off()
    axes.set_xlim(-0.12, len(layout) * 1.25 + 0.02)
    axes.set_ylim(height / 2 - slim / 2 - 1.4, height / 2 + slim / 2 + 1.4)
    labels = height <= 40
    for column, layers in enumerate(layout):
        left = column * 1.25
        _draw_stream(axes, left + 0.5, len(layers))
        for row, i in enumerate(layers):
            _draw_layer(axes, cost.layers[i].plan, left, row, labels)
            if labels and (row == 0 or (i + 1) % 4 == 0 or i + 1 == len(cost.layers)):
                axes.text(left - 0.035, row + 0.5, str(i), size=6, color=FAINT, ha="right", va="center")
    _box(axes, 0.0, -1.25, 1.0, 0.85, "#eef1f4", "embedding")
    _box(axes, (len(layout) - 1) * 1.25, len(layout[-1]) + 0.4, 1.0, 0.85, "#eef1f4", "norm, head")
    for column, layers in enumerate(layout[:-1]):
        _draw_turn(axes, column * 1.25 + 0.5, len(layers))


def _draw_stream(axes: Axes, x: float, length: int) -> None:
    """The residual stream behind the boxes of a column."""
    axes.plot([x, x], [-0.4, length + 0.4], color=FAINT, linewidth=1, zorder=0, solid_capstyle="round")


def _draw_turn(axes: Axes, x: float, top: float) -> None:
    """The stream's way from the top of a column to the foot of the next."""
    over = x + 0.625
    axes.plot(
        [x, x, over, over, x + 1.25, x + 1.25],
        [top, top + 0.4, top + 0.4, -0.4, -0.4, 0],
        color=FAINT,
        linewidth=1,
        zorder=0,
        solid_joinstyle="round",
    )


def _draw_layer(axes: Axes, plan: Any, left: float, row: int, labels: bool) -> None:
    """Its mixers side by side, then its MLP; one without a mixer is all MLP. Marks for what it does besides."""
    split = 0.0 if not plan.mixers else 1.0 if plan.mlp is None else 0.68
    names = [part.type for part in plan.mixers]
    texts = _short(plan.name, len(names)) if labels else [""] * len(names)
    for i, (colour, text) in enumerate(zip(colours(names), texts, strict=True)):
        width = split / len(names)
        _box(axes, left + i * width, row + 0.06, width - 0.02 * (split < 1), 0.88, colour, text)
    if plan.mlp is not None:
        text = plan.mlp.type if labels and split < 1 else ""
        _box(axes, left + split, row + 0.06, 1 - split, 0.88, MLP_COLOUR, text, size=6)
    if plan.label is not None:
        axes.plot([left + 0.03] * 2, [row + 0.2, row + 0.8], color=PAPER, linewidth=2.2, solid_capstyle="round")
    if plan.options.input == "concat_embeddings":
        axes.plot([left + 0.08], [row + 0.5], color=PAPER, marker=">", markersize=3.5)
    if plan.options.output == "next_mixer":
        hook = [left + 1.01, left + 1.06, left + 1.06, left + 1.02], [row + 0.5, row + 0.5, row + 1.5, row + 1.5]
        axes.plot(*hook, color=FAINT, linewidth=1, marker="<", markersize=3, markevery=[-1])


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str, size: float = 7.5
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = {"boxstyle": "round,pad=0,rounding_size=0.03", "mutation_aspect": 6, "linewidth": 0}
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, **style))
    if text:
        middle = {"ha": "center", "va": "center", "parse_math": False}
        axes.text(x + width / 2, y + height / 2 - 0.02, text, size=size, color=_ink_on(colour), **middle)


def _ink_on(colour: str) -> str:
    """Dark text on light boxes, light text on dark ones."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 165 else PAPER


def _short(name: str, count: int) -> list[str]:
    """The texts in the boxes of a place with `count` mixers: its names, without overrides."""
    texts = re.sub(r"\{.*?\}+", "", name).strip("<>").replace("[", "").replace("]", "").split("|")
    texts = [text.replace(">", "") for text in texts]
    room = 12 // max(count, 1)
    return (
        [text if len(text) <= room else text[: room - 1] + "…" for text in texts]
        if len(texts) == count
        else [""] * count
    )


# --------------------------------------------------------------------------------------------------------------- state
def _draw_state(axes: Axes, cost: ModelCost, batch: int, dtype: torch.dtype) -> None:
    """Bytes of state against the context: in all, KV and SSM apart, and the twin's."""
    states = [cost.state(context, dtype, batch) for context in CONTEXTS]
    twin = [cost.all_attention(context, dtype, batch).total for context in CONTEXTS]
    totals = [state.total for state in states]
    if not any(twin):  # a stack of MLPs
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no layer has a state", color=FAINT, ha="center", transform=axes.transAxes)
        return
    _curve(axes, twin, "all attention", colour=FAINT, linestyle=(0, (4, 2)), linewidth=1.6)
    saved = [total < other for total, other in zip(totals, twin, strict=True)]
    axes.fill_between(CONTEXTS, totals, twin, where=saved, color=FAINT, alpha=0.13, linewidth=0)
    _curve(axes, totals, "this model", colour=INK, linewidth=2.6)
    if any(state.kv and state.ssm for state in states):
        _curve(axes, [state.kv for state in states], "its KV", colour=_NAMED["attention"], linewidth=1.3)
        _curve(axes, [state.ssm for state in states], "its SSM", colour=_NAMED["mamba2"], linewidth=1.3)
    _decorate(axes, [n for state in states for n in (state.kv, state.ssm) if n] + twin)
    _say_ratio(axes, totals[-1], twin[-1])
    title = f"Bytes of state (batch {batch}, {dtype_name(dtype)})"
    axes.set_title(title, loc="left", size=10.5, weight="bold", pad=12)


def _curve(axes: Axes, values: list[int], name: str, *, colour: str, **style: Any) -> None:
    if any(values):
        axes.plot(CONTEXTS, [value or float("nan") for value in values], color=colour, label=name, **style)


def _decorate(axes: Axes, values: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(CONTEXTS[0], CONTEXTS[-1])
    axes.set_xticks(CONTEXTS[::2], [_context(context) for context in CONTEXTS[::2]])
    axes.set_xticks([], minor=True)
    low, high = max(0, min(values).bit_length() - 2), max(values).bit_length() + 1
    ticks = [2**i for i in range(low, high + 1) if (i - low) % max(1, (high - low) // 7) == 0]
    axes.set_ylim(2**low, 2**high)
    axes.set_yticks(ticks, [_bytes(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("context (tokens)", color=FAINT)
    axes.grid(True, color="#e8ecf0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=8.5, labelcolor=INK)


def _say_ratio(axes: Axes, total: int, twin: int) -> None:
    """How much smaller the state is at the longest context."""
    if total and twin >= 1.05 * total:
        ratio = f"{twin / total:,.0f}" if twin >= 10 * total else f"{twin / total:.2g}"
        text = f"{ratio}× smaller at {_context(CONTEXTS[-1])}"
        axes.set_title(text, loc="right", size=9.5, color=_NAMED["mamba2"], weight="bold", pad=12)


def _context(tokens: int) -> str:
    return str(tokens) if tokens < 1024 else f"{tokens >> 10}k" if tokens < 1 << 20 else f"{tokens >> 20}M"


def _bytes(number: int) -> str:
    """A power of two in the largest unit that leaves it whole."""
    power = min(max(number.bit_length() - 1, 0) // 10, 6)
    return f"{number / 1024**power:g} {['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'][power]}"


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
