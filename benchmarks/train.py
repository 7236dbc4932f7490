"""`train`: whole training steps, forward, backward and AdamW, of the same model in each package."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import architecture, contenders, paths
from benchmarks.architecture import Architecture, relative
from benchmarks.contest import Entry, Work, contest
from benchmarks.inference import prompts
from benchmarks.peers import Peer
from benchmarks.run import Run
from benchmarks.timing import free
from hybridlm.compose.cost import BACKWARD

EXAMPLE = "python -m benchmarks train --peer mamba_ssm,transformers --shapes 8x4096,2x16384"
ERROR = "RMS of the logits' difference to float64 with the same weights, relative; loss: that of the first step"
PROBE = 1024
"""Tokens whose logits are compared."""


def add_options(parser: ArgumentParser) -> None:
    """Shapes, and the model."""
    parser.add_argument("--shapes", default="8x4096,2x16384", help="batch x length, commas between")
    parser.add_argument("--precision", choices=("autocast", "float32"), help="default: bf16 autocast on a GPU only")
    architecture.add_options(parser)
    contenders.add_options(parser)


def shapes(text: str) -> list[tuple[int, int]]:
    """ "8x4096,2x16384" -> pairs. ValueError: something else."""
    pairs = [re.fullmatch(r"\s*([1-9]\d*)x([1-9]\d*)\s*", shape) for shape in text.split(",")]
    if None in pairs:
        raise ValueError(f"--shapes: {text!r}; it takes batch x length with commas between, such as 8x4096,2x16384")
    return [(int(pair[1]), int(pair[2])) for pair in pairs]


def main(args: Namespace) -> int:
    """A contest for every shape."""
    contenders.check(args)
    wanted, arch = shapes(args.shapes), Architecture.of(args)
    run = Run(args, f"training {arch.pattern}, d_model {arch.d_model}", ERROR)
    weights = arch.weights(args.device, args.seed)
    probe = prompts(arch, 1, args, min(PROBE, max(t for _, t in wanted)))
    truth = arch.truth(weights, probe[0]).float()
    free(args.device)
    for batch, length in wanted:
        work = Work(f"{batch} x {length}", batch * length, *_needs(arch, batch, length))
        contest(run, work, _contenders(arch, weights, args, prompts(arch, batch, args, length), probe, truth))
    return run.finish()


def _needs(arch: Architecture, batch: int, length: int) -> tuple[float, float]:
    """FLOPs and bytes of a step."""
    return BACKWARD * batch * arch.forward_flops(length), arch.step_bytes()


def autocast(args: Namespace) -> torch.dtype | None:
    """The dtype of a forward pass where it is not that of the weights: bf16 on a GPU unless the options say so."""
    gpu = args.device.startswith("cuda")
    wanted = args.precision or ("autocast" if gpu else "float32")
    return torch.bfloat16 if wanted == "autocast" else None


def under(device: str, dtype: torch.dtype | None) -> AbstractContextManager:
    """What a forward pass runs under."""
    return torch.autocast(device.partition(":")[0], dtype, enabled=dtype is not None)


def optimizer(model: nn.Module) -> torch.optim.AdamW:
    """The same for everyone, and fused, which is what hybridlm and transformers train with."""
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _contenders(arch: Architecture, weights: dict, args: Namespace, ids: Tensor, probe: Tensor, truth: Tensor):
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    recipe = partial(under, args.device, autocast(args))

    def ours(path: str) -> Entry:
        model = arch.ours(weights, args.device, torch.float32).train()
        error = _error(model, lambda x: model(x).logits, probe, truth, recipe)
        label = "eager" if path == "eager" else paths.compiled(model)
        first = _loss(lambda: model(ids, targets=targets).loss, recipe)  # compiles, so that a failure is seen here
        entry = Entry(step_of(model, lambda: model(ids, targets=targets).loss, recipe), label)
        if path == "graph":
            entry = paths.captured_step(model, optimizer(model), {"ids": ids, "targets": targets}, autocast(args))
        entry.parameters, entry.check = arch.cost.parameters, lambda: (error, first)
        return entry

    def theirs(build: Callable[[], Peer], name: str) -> Entry:
        peer = build()
        peer.model.train()
        error = _error(peer.model, peer.logits, probe, truth, recipe)
        first = _loss(lambda: peer.loss(ids, targets), recipe)
        step = step_of(peer.model, lambda: peer.loss(ids, targets), recipe)
        return Entry(step, peer.label, peer.parameters, peer.notes, check=lambda: (error, first))

    return contenders.line_up(
        args,
        paths.TRAINING,
        ours,
        theirs,
        lambda m: m.build(arch, weights, args.device, torch.float32),
        alone=True,
    )


def step_of(model: nn.Module, loss: Callable[[], Tensor], recipe: Callable) -> Callable[[], Tensor]:
    """A training step as everyone writes it."""
    adam = optimizer(model)

    def step() -> Tensor:
        with recipe():
            value = loss()
        value.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return value.detach()

    return step


def _loss(loss: Callable[[], Tensor], recipe: Callable) -> float:
    """Of the weights as they are."""
    with recipe():
        return loss().item()


@torch.no_grad()
def _error(model: nn.Module, logits: Callable, probe: Tensor, truth: Tensor, recipe: Callable) -> float:
    model.eval()
    with recipe():
        found = logits(probe)[0]
    model.train()
    return relative(found, truth)
