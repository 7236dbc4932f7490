"""`zoo`: tokens per second of each mixer of hybridlm: a training step, reading a prompt, decoding."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from torch import Tensor

import hybridlm as hl
from benchmarks.rows import Row
from benchmarks.run import Run, reason
from benchmarks.timing import seconds
from hybridlm.compose.cost import BACKWARD, model_cost

EXAMPLE = "python -m benchmarks zoo MMMA A --d-model 512 --tokens 2048 --device cuda"
PATTERNS = ["A4", "W4", "S4", "m4", "M4", "M3A"]
ERROR = "not measured here; see the other commands"


def add_options(parser: ArgumentParser) -> None:
    """Patterns and sizes."""
    parser.add_argument(
        "patterns", nargs="*", default=PATTERNS, metavar="PATTERN", help=f"default {' '.join(PATTERNS)}"
    )
    for name, default in {"d-model": 256, "batch": 4, "tokens": 512, "decode": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")


def main(args: Namespace) -> int:
    """Three rows a pattern."""
    sizes = f"d_model {args.d_model}, batch {args.batch}, {args.tokens} tokens, {torch.get_num_threads()} threads"
    run = Run(args, f"mixers one by one, {sizes}", ERROR)
    with run.progress(len(args.patterns)) as step:
        for pattern in args.patterns:
            step(pattern)
            run.add(*_rows(run, pattern, args))
    return run.finish()


def _rows(run: Run, pattern: str, args: Namespace) -> list[Row]:
    """training, prefill, decoding of a pattern; what fails says why."""
    rows = []
    try:
        torch.manual_seed(args.seed)
        model = hl.build(pattern=pattern, d_model=args.d_model, vocab_size=256).to(args.device)
        ids = torch.randint(256, (args.batch, args.tokens), device=args.device)
        cost = model_cost(model.spec)
    except Exception as error:
        return [Row(pattern, "hybridlm", why=reason(error))]
    flops = args.batch * cost.forward(args.tokens).matmul
    works = {
        "training": (lambda: training(model, ids), ids.numel(), BACKWARD * flops),
        "prefill": (lambda: prefill(model, ids), ids.numel(), flops),
        "decoding": (lambda: decoding(model, ids, args.decode), args.batch * args.decode, 0.0),
    }
    for name, (make, tokens, work_flops) in works.items():
        row = Row(pattern, name, "hybridlm", tokens=tokens, flops=work_flops, parameters=cost.parameters)
        try:
            work = make()
            times = [seconds(work, args.device) for _ in range(args.rounds * args.calls + 1)]
            row.seconds = times[1:]
        except Exception as error:
            row.why = reason(error)
        rows.append(row)
    return rows


def training(model: hl.HybridLM, ids: Tensor) -> Callable[[], None]:
    """One forward and backward with a loss over every token."""

    def step() -> None:
        model(ids, targets=ids).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def prefill(model: hl.HybridLM, ids: Tensor) -> Callable[[], None]:
    """The whole of ids into a fresh state."""

    @torch.inference_mode()
    def read() -> None:
        model(ids, state=model.init_state(len(ids), ids.shape[1]))

    return read


def decoding(model: hl.HybridLM, ids: Tensor, tokens: int) -> Callable[[], None]:
    """`tokens` single steps behind the whole of ids, each round from a fork of the same state."""
    with torch.inference_mode():
        prompt = model(ids, state=model.init_state(len(ids), ids.shape[1] + tokens)).state

    @torch.inference_mode()
    def write() -> None:
        state = prompt.fork()
        for _ in range(tokens):
            state = model(ids[:, :1], state=state).state

    return write
