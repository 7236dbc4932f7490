"""How fast is each mixer here? Tokens per second of a training step, of reading a prompt, and of decoding.

    make bench                                    the default patterns on the CPU
    make bench ARGS="MMMA A --d-model 512 --tokens 2048 --device cuda"

Each figure is the best of several rounds: on a shared machine that is the round which was least disturbed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import hybridlm as hl

PATTERNS = ["A4", "W4", "S4", "m4", "M4", "M3A"]


def best_of(rounds: int, work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of `rounds` calls, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        _settle(device)
        start = time.perf_counter()
        work()
        _settle(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def training(model: hl.HybridLM, ids: torch.Tensor) -> Callable[[], None]:
    """One forward and backward with a loss over every token."""

    def step() -> None:
        model(ids, targets=ids).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def prefill(model: hl.HybridLM, ids: torch.Tensor) -> Callable[[], None]:
    """The whole of ids into a fresh state."""

    @torch.inference_mode()
    def read() -> None:
        model(ids, state=model.init_state(len(ids), ids.shape[1]))

    return read


def decoding(model: hl.HybridLM, ids: torch.Tensor, tokens: int) -> Callable[[], None]:
    """`tokens` single steps behind the whole of ids, each round from a fork of the same state."""
    with torch.inference_mode():
        prompt = model(ids, state=model.init_state(len(ids), ids.shape[1] + tokens)).state

    @torch.inference_mode()
    def write() -> None:
        state = prompt.fork()
        for _ in range(tokens):
            state = model(ids[:, :1], state=state).state

    return write


def measure(pattern: str, args: argparse.Namespace) -> list[str]:
    """One row of the table."""
    torch.manual_seed(0)
    model = hl.build(pattern=pattern, d_model=args.d_model, vocab_size=256).to(args.device)
    ids = torch.randint(256, (args.batch, args.tokens), device=args.device)
    counts = [(training(model, ids), ids.numel()), (prefill(model, ids), ids.numel())]
    counts.append((decoding(model, ids, args.decode), args.batch * args.decode))
    rates = [count / best_of(args.rounds, work, args.device) for work, count in counts]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [pattern, f"{parameters / 1e6:.2f} M", *(f"{rate:,.0f}" for rate in rates)]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=PATTERNS, metavar="PATTERN")
    for name, default in {"d-model": 256, "batch": 4, "tokens": 512, "decode": 32, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    title = f"tokens/s on {args.device}: torch {torch.__version__}, {torch.get_num_threads()} threads, "
    title += f"d_model {args.d_model}, batch {args.batch}, {args.tokens} tokens"
    table = Table("pattern", "parameters", "training", "prefill", "decoding", title=title)
    for pattern in args.patterns:
        table.add_row(*measure(pattern, args))
    Console().print(table)


if __name__ == "__main__":
    main()
