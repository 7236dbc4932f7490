"""What each layer of a model runs on, and why; and what would be faster. The layers are asked, not guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlm.compose.plan import LayerPlan
    from hybridlm.compose.spec import ModelSpec
    from hybridlm.ops.backend import Seen

CHOSEN = {
    "vendor": "a fused kernel takes these shapes on this device",
    "triton": "our own kernel takes these shapes on this device",
    "reference": "plain PyTorch",
}


def layers(model: str, device: str, dtype: str) -> list[dict[str, Any]]:
    """What each kind of layer runs: {block, count, device, dtype, training, decoding}, op by op."""
    from hybridlm.cli.models import read_spec
    from hybridlm.compose.cost import model_cost

    cost = model_cost(read_spec(model))
    return [
        {
            "block": layer.plan.name,
            "count": count,
            "device": device,
            "dtype": dtype,
            "training": _trace(layer.plan, cost.stack.spec, device, dtype, tokens=256),
            "decoding": _trace(layer.plan, cost.stack.spec, device, dtype, tokens=1),
        }
        for layer, count in cost.kinds
    ]


def ops_of(found: list[dict[str, Any]]) -> list[str]:
    """Every op that the layers run."""
    return list(dict.fromkeys(op["op"] for layer in found for when in ("training", "decoding") for op in layer[when]))


def _trace(plan: LayerPlan, spec: ModelSpec, device: str, dtype: str, tokens: int) -> list[dict[str, Any]]:
    """The ops that a call of the layer runs: {op, backend, why, passed}.

    Many tokens are training: float32 weights, under autocast where the dtype is another. One token continues a state,
    without gradients and with weights of that dtype. The tensors have shapes and a device but no memory.
    """
    import torch
    from torch._subclasses import FakeTensorMode

    from hybridlm.compose.block import Block
    from hybridlm.ops.backend import trace

    training, kind = tokens > 1, getattr(torch, dtype)
    with torch.device("meta"):
        block = Block(plan, spec).to(torch.float32 if training else kind)
    cast = torch.autocast(torch.device(device).type, kind, enabled=training and kind != torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(training), cast, trace() as seen:
        try:
            _call(block.to_empty(device=device), spec, device, tokens)
        except RuntimeError as error:  # a layer that looks at values cannot be called without any
            return [{"op": "?", "backend": "?", "why": f"it cannot be asked: {_first_line(error)}", "passed": {}}]
    return [_row(one) for one in dict.fromkeys(seen)]


def _call(block: Any, spec: ModelSpec, device: str, tokens: int) -> None:
    from dataclasses import replace

    import torch

    from hybridlm.context import Cursor

    x = torch.zeros(1, tokens, spec.d_model, device=device, dtype=next(iter(block.parameters()), torch.zeros(0)).dtype)
    state, cursor = None, Cursor.zeros(1, device=device)
    if tokens == 1:
        state = block.init_state(1, 256, device=device, dtype=x.dtype)
        cursor.open(x.expand(1, 128, -1))  # so many came before
    block(x, state, replace(cursor.open(x), embeddings=x))


def _row(one: Seen) -> dict[str, Any]:
    passed = dict(one.passed)
    reasons = "; ".join(f"{name}: {why}" for name, why in passed.items())
    why = CHOSEN[one.backend] + (f" ({reasons})" if reasons else "" if one.backend != "reference" else ": all there is")
    return {"op": one.op, "backend": one.backend, "why": why, "passed": passed}


def faster(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packages for want of which a backend was passed over: {packages, ops, install}; empty: nothing is to gain."""
    from hybridlm.ops.packages import PACKAGES, install

    rows = []
    for package in PACKAGES:
        calls = [op for layer in found for when in ("training", "decoding") for op in layer[when]]
        ops = [op["op"] for op in calls if any(package.named_in(why) for why in op["passed"].values())]
        if ops:
            rows.append({"package": package.name, "ops": list(dict.fromkeys(ops)), "install": install([package])})
    return rows


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
