"""`twins`: the same small hybrid with the same weights in hybridlm and in transformers, on a CPU."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch

from benchmarks import architecture, contenders, paths
from benchmarks.architecture import Architecture
from benchmarks.contest import Contender, Entry, Work, contest
from benchmarks.inference import prompts
from benchmarks.peers import Peer
from benchmarks.run import Run
from benchmarks.timing import free
from benchmarks.train import step_of
from benchmarks.twin_calls import decoder, same_logits
from hybridlm.compose.cost import BACKWARD

EXAMPLE = "OMP_NUM_THREADS=2 GOMP_SPINCOUNT=10000 python -m benchmarks twins --peer transformers --ours eager,compile"
ERROR = "RMS of the difference to float64 with the same weights, relative: of all logits, or of the last step's"
CASES = ("training", "prefill", "decode")
SIZES = {"pattern": "(MMMA)3", "d_model": 320, "d_state": 128, "head_dim": 64, "vocab_size": 8192}
"""Layers of the shape that the figures on a GPU have, at ten million parameters."""


def add_options(parser: ArgumentParser) -> None:
    """Sizes of the calls, and the model."""
    for name, default in {"batch": 4, "length": 512, "prompt": 1024, "new": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--cases", default=",".join(CASES), help=f"commas between; default {','.join(CASES)}")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default 2")
    architecture.add_options(parser, **SIZES)
    contenders.add_options(parser)
    parser.set_defaults(device="cpu", rounds=5, calls=2, warmup=1)


def main(args: Namespace) -> int:
    """Training step, prefill and decoding. ValueError: another device."""
    if args.device != "cpu":
        raise ValueError("twins are timed on a CPU; see train, decode and prefill for a GPU")
    contenders.check(args)
    wanted = contenders.listed(args.cases, CASES, "--cases")
    torch.set_num_threads(args.threads)
    arch = Architecture.of(args)
    size = f"{arch.cost.parameters / 1e6:.1f} M parameters"
    run = Run(args, f"CPU twins: {arch.pattern}, d_model {arch.d_model}, {size}, float32", ERROR)
    weights = arch.weights("cpu", args.seed)
    for case, tokens, flops, make in _cases(arch, args):
        if case.split()[0] not in wanted:
            continue
        work = Work(case, tokens, flops, arch.cost.parameters * 4.0)
        dynamic = None if case.startswith("decode") else False  # a cache grows by every token
        contest(run, work, _line_up(arch, weights, args, make, dynamic))
        free("cpu")
    return run.finish()


def _cases(arch: Architecture, args: Namespace):
    """(name, tokens of a call, FLOPs, calls -> entry)."""
    batch, length, prompt = args.batch, args.length, args.prompt
    train, read = prompts(arch, batch, args, length), prompts(arch, 1, args, prompt)
    yield (
        f"training {batch} x {length}", batch * length, BACKWARD * batch * arch.forward_flops(length),
        lambda model, calls: _training(model, calls, train),
    )  # fmt: skip
    yield f"prefill {prompt}", prompt, arch.forward_flops(prompt, 1), lambda model, calls: _prefill(model, calls, read)
    decode = arch.cost.decoding(prompt).matmul
    yield f"decode after {prompt}", 1, decode, lambda model, calls: decoder(model, calls, read, args.new)


def _training(model, calls: dict, ids) -> Entry:
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    step = step_of(model.train(), lambda: calls["loss"](ids, targets), lambda: torch.autocast("cpu", enabled=False))
    return Entry(step)


def _prefill(model, calls: dict, ids) -> Entry:
    model.eval()
    read = torch.inference_mode()(calls["prefill"])
    return Entry(lambda: read(ids))


def _line_up(arch: Architecture, weights: dict, args: Namespace, make, dynamic: bool | None) -> list[Contender]:
    """Ours on the paths that were asked for, and theirs with our weights."""

    def ours(path: str) -> Entry:
        if path == "graph":
            raise NotImplementedError("a CUDA graph needs a GPU")
        model = arch.ours(weights, "cpu", torch.float32)
        label = "eager" if path == "eager" else paths.compiled(model, dynamic=dynamic)
        calls = {
            "loss": lambda ids, targets: model(ids, targets=targets).loss,
            "prefill": lambda ids: paths.read_eagerly(model, ids),
            "logits": lambda ids: model(ids).logits,
        }
        return _finished(arch, weights, model, calls, make, label, [])

    def theirs(build: Callable[[], Peer], name: str) -> Entry:
        found = build()
        calls = {"loss": found.loss, "prefill": found.prefill, "logits": found.logits}
        return _finished(arch, weights, found.model, calls, make, found.label, found.notes)

    return contenders.line_up(
        args, paths.INFERENCE, ours, theirs, lambda m: m.build(arch, weights, "cpu", torch.float32)
    )


def _finished(arch: Architecture, weights: dict, model, calls: dict, make, label: str, notes: list[str]) -> Entry:
    error = same_logits(arch, weights, model, calls["logits"])
    entry = make(model, calls)
    entry.label, entry.notes = label, notes
    entry.parameters = sum(parameter.numel() for parameter in model.parameters())
    entry.check = lambda: (error, None)
    return entry
