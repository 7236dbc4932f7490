"""`hybridlm doctor`: what this machine has, what is missing and what it would give, and what each layer runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlm.compose.plan import LayerPlan
    from hybridlm.compose.spec import ModelSpec

CORE = ("torch", "lightning", "tokenizers", "safetensors", "numpy")
OPTIONAL = {  # package: (what it gives, how to install it)
    "triton": ("nothing yet: no kernel of ours is called in this version", "pip install 'hybridlm[gpu]'"),
    "mamba-ssm": ("nothing yet: not called in this version", "pip install --no-build-isolation 'hybridlm[mamba]'"),
    "causal-conv1d": ("nothing yet: not called in this version", "pip install --no-build-isolation 'hybridlm[mamba]'"),
    "flash-attn": (
        "nothing yet: PyTorch's own fused attention is used",
        "pip install --no-build-isolation 'hybridlm[flash]'",
    ),
    "transformers": ("an independent oracle for the tests", "pip install 'hybridlm[hf]'"),
}


def doctor(model: str | None = None, /, json: bool = False) -> None:
    """Versions, devices and optional packages, found or missing; with a model, what runs each of its layers and why.

    Nothing is needed beyond the core: what is missing makes some layers slower, never wrong.

    Args:
        model: a YAML file, the name of a shipped one such as tiny, a run folder, or a pattern such as "(M3A)2".
        json: print JSON: {python, platform, hybridlm, packages, optional, devices, layers}.
    """
    about = examine() | {"layers": _layers(model) if model else None}
    if json:
        import json as writer

        print(writer.dumps(about, indent=2, ensure_ascii=False))
    else:
        _print(about)


def examine() -> dict[str, Any]:
    """What is installed and what torch can compute on."""
    from hybridlm import __version__
    from hybridlm.ops.backend import devices

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hybridlm": __version__,
        "packages": {name: _version(name) for name in CORE},
        "optional": [
            {"package": name, "version": _version(name), "gives": gives, "install": install}
            for name, (gives, install) in OPTIONAL.items()
        ],
        "devices": [{"name": name, "about": about} for name, about in devices()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -------------------------------------------------------------------------------------------------------------- layers
REASONS = {
    "vendor": "a fused kernel takes these shapes on this device",
    "triton": "our own kernel takes these shapes on this device",
    "reference": "plain PyTorch: nothing faster is offered here",
}


def _layers(model: str) -> list[dict[str, Any]]:
    """What each kind of layer of a model runs on: {block, count, device, training, decoding}, op by op."""
    from hybridlm.cli.models import read_spec
    from hybridlm.compose.cost import model_cost
    from hybridlm.ops.backend import devices

    cost, device = model_cost(read_spec(model)), devices()[-1][0]
    return [
        {
            "block": layer.plan.name,
            "count": count,
            "device": device,
            "training": _trace(layer.plan, cost.stack.spec, device, tokens=256),
            "decoding": _trace(layer.plan, cost.stack.spec, device, tokens=1),
        }
        for layer, count in cost.kinds
    ]


def _trace(plan: LayerPlan, spec: ModelSpec, device: str, tokens: int) -> list[dict[str, str]]:
    """The ops that a call of the layer runs: {op, backend, why}; with one token it continues a state.

    They are asked, not guessed: the layer is called, on tensors that have shapes and a device but no memory.
    """
    from dataclasses import replace

    import torch
    from torch._subclasses import FakeTensorMode

    from hybridlm.compose.block import Block
    from hybridlm.context import Cursor
    from hybridlm.ops.backend import trace

    with torch.device("meta"):
        block = Block(plan, spec)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), trace() as seen:
        block = block.to_empty(device=device)
        x = torch.zeros(1, tokens, spec.d_model, device=device)
        state = block.init_state(1, 256, device=device, dtype=x.dtype) if tokens == 1 else None
        try:
            block(x, state, replace(Cursor.zeros(1, device=device).open(x), embeddings=x))
        except RuntimeError as error:  # a layer that looks at values cannot be called without any
            return [{"op": "?", "backend": "?", "why": f"it cannot be asked: {str(error).splitlines()[0]}"}]
    return [{"op": op, "backend": backend, "why": REASONS[backend]} for op, backend, _ in dict.fromkeys(seen)]


# ------------------------------------------------------------------------------------------------------------ printing
def _print(about: dict[str, Any]) -> None:
    from hybridlm.train.console import Terminal

    console = Terminal(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(f"hybridlm {about['hybridlm']}, Python {about['python']}, {about['platform']}", soft_wrap=True)
    console.print(
        ", ".join(f"{name} {found or 'missing'}" for name, found in about["packages"].items()), soft_wrap=True
    )
    console.print(_table(["device", ""], [(device["name"], device["about"]) for device in about["devices"]]))
    optional = [(row["package"], row["version"] or "-", row["gives"], row["install"]) for row in about["optional"]]
    console.print(_table(["optional", "found", "gives", "install with"], optional))
    if about["layers"] is not None:
        rows = [row for layer in about["layers"] for row in _layer_rows(layer)]
        console.print(_table(["block", "×", "when", "ops", "run on", "because"], rows))


def _layer_rows(layer: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each backend that a layer uses, with the ops that it runs."""
    same = layer["training"] == layer["decoding"]
    rows, name = [], (layer["block"], str(layer["count"]))
    for when in ("training",) if same else ("training", "decoding"):
        for backend, why in dict.fromkeys((op["backend"], op["why"]) for op in layer[when]):
            ops = ", ".join(op["op"] for op in layer[when] if op["backend"] == backend)
            rows.append((*name, "always" if same else when, ops, backend, why))
            name = ("", "")
    return rows


def _table(columns: list[str], rows: list[tuple[str, ...]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
