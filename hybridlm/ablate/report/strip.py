"""A pattern as a strip of boxes, in the colours of `hybridlm describe --plot`: mixers above, the MLP below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from itertools import groupby

from hybridlm.ablate.report.blocks import Strip
from hybridlm.ablate.report.words import listed, readable
from hybridlm.compose.picture import MLP_COLOUR, colours
from hybridlm.compose.plan import plan
from hybridlm.compose.spec import ModelSpec

HEIGHT, MIXERS, GAP = 22, 14, 1  # units: the whole strip, the part of the mixers, between two layers
WIDEST, WIDTH = 14, 300
MOST = 512  # layers that are drawn


def strip_of(spec: ModelSpec) -> Strip:
    """The strip of a model."""
    stack = plan(spec)
    layers = tuple(
        (tuple(part.type for part in layer.mixers), layer.mlp.type if layer.mlp else None) for layer in stack.layers
    )
    return Strip(stack.spec.pattern, layers)


def said(strip: Strip) -> str:
    """The strip in words: how many layers, and which mixers."""
    counts = Counter(mixer for mixers, _ in strip.layers for mixer in mixers)
    parts = [f"{name} × {count}" for name, count in counts.most_common()]
    return f"{len(strip.layers)} layers: {listed(parts, 8) if parts else 'MLPs alone'}"


def strip_svg(strip: Strip) -> str:
    """An SVG element. Neighbours that are alike are one box where boxes would be thinner than three units."""
    layers = strip.layers[:MOST]
    step = min(WIDEST, WIDTH / len(layers))
    boxes = "".join(_boxes(layers, step))
    width = round(step * len(layers), 1)
    about = escape(readable(said(strip)))
    return (
        f'<svg viewBox="0 0 {width:g} {HEIGHT}" width="{width:g}" height="{HEIGHT}" role="img" aria-label="{about}">'
        f"<title>{about}</title>{boxes}</svg>"
    )


def _boxes(layers: tuple, step: float) -> Iterator[str]:
    runs = [(layer, len(list(run))) for layer, run in groupby(layers)] if step < 3 else [(one, 1) for one in layers]
    at, gap = 0.0, GAP if step >= 3 else 0
    for (mixers, mlp), count in runs:
        width = step * count - gap
        foot = MIXERS + 1 if mixers else 0
        for i, colour in enumerate(colours(mixers)):
            part = MIXERS / len(mixers)
            yield _box(at, i * part, width, part, colour)
        if mlp:
            yield _box(at, foot, width, HEIGHT - foot, MLP_COLOUR)
        at += step * count


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.4g}" y="{y:.3g}" width="{width:.4g}" height="{height:.3g}" fill="{colour}"/>'
