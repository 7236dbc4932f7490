"""`decode` and `prefill`: generating after a prompt, and reading one, of the same model in each package."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import architecture, contenders, paths
from benchmarks.architecture import Architecture, relative
from benchmarks.contest import Entry, Work, contest
from benchmarks.peers import Peer
from benchmarks.run import Run
from benchmarks.timing import free, seconds

DECODE_EXAMPLE = "python -m benchmarks decode --peer mamba_ssm,transformers --batches 1,16,64 --prompt 2048"
PREFILL_EXAMPLE = "python -m benchmarks prefill --peer mamba_ssm,transformers --batches 1,64 --prompt 2048"
DECODE_ERROR = (
    "how far the logits of the chosen tokens fall short of the best ones, in float64 with the same weights, as a mean "
    "in units of the logits' RMS: 0 where every choice is the best"
)
PREFILL_ERROR = "RMS of the last logits' difference to float64 with the same weights, relative"
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def add_options(parser: ArgumentParser, batches: str, best: str) -> None:
    """Batches, prompt, and the model."""
    parser.add_argument("--batches", default=batches, help=f"commas between; default {batches}")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens that are read first; default 2048")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default bf16 on a GPU, float32 on a CPU")
    architecture.add_options(parser)
    contenders.add_options(parser, best)


def add_decode_options(parser: ArgumentParser) -> None:
    """As above, and how many tokens to write."""
    parser.add_argument("--new", type=int, default=64, help="tokens that are timed; default 64")
    add_options(parser, "1,16,64", "graph")


def add_prefill_options(parser: ArgumentParser) -> None:
    """As above."""
    add_options(parser, "1,64", "graph,compile")


def dtype_of(args: Namespace) -> torch.dtype:
    """Of the weights."""
    return DTYPES[args.dtype or ("bf16" if args.device.startswith("cuda") else "float32")]


def decode(args: Namespace) -> int:
    """Time a token: a generation of `new` + 1 tokens less one of a single token, which is the prompt's."""
    contenders.check(args)
    batches = contenders.whole_numbers(args.batches, "--batches")
    arch, dtype = Architecture.of(args), dtype_of(args)
    run = Run(
        args,
        f"decoding {arch.pattern}, d_model {arch.d_model}, {dtype_name(dtype)}, prompt {args.prompt}",
        DECODE_ERROR,
    )
    weights = arch.weights(args.device, args.seed)
    for batch in batches:
        context, ids = args.prompt + args.new // 2, prompts(arch, batch, args)
        flops = batch * arch.cost.decoding(context).matmul
        work = Work(f"batch {batch}", batch, flops, arch.token_bytes(context, batch, dtype))
        contest(run, work, _decoders(arch, weights, args, ids, dtype))
    return run.finish()


def prefill(args: Namespace) -> int:
    """Time the reading of a prompt into an empty cache, up to the logits of its last token."""
    contenders.check(args)
    batches = contenders.whole_numbers(args.batches, "--batches")
    arch, dtype = Architecture.of(args), dtype_of(args)
    run = Run(
        args,
        f"prefill {arch.pattern}, d_model {arch.d_model}, {dtype_name(dtype)}, {args.prompt} tokens",
        PREFILL_ERROR,
    )
    weights = arch.weights(args.device, args.seed)
    for batch in batches:
        ids = prompts(arch, batch, args)
        truth = arch.truth(weights, ids[0])[-1]
        free(args.device)
        flops, moved = batch * arch.forward_flops(args.prompt, logits=1), arch.token_bytes(args.prompt, batch, dtype)
        work = Work(f"batch {batch}", batch * args.prompt, flops, moved)
        contest(run, work, _readers(arch, weights, args, ids, dtype, truth))
    return run.finish()


def dtype_name(dtype: torch.dtype) -> str:
    """In a few letters."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def prompts(arch: Architecture, batch: int, args: Namespace, length: int | None = None) -> Tensor:
    """(b, length) tokens, by default as long as the prompt, none of them 0, which is padding to some."""
    generator, shape = torch.Generator().manual_seed(args.seed), (batch, length or args.prompt)
    return torch.randint(1, arch.vocab_size, shape, generator=generator).to(args.device)


# ------------------------------------------------------------------------------------------------------------- decoding
def _decoders(arch: Architecture, weights: dict, args: Namespace, ids: Tensor, dtype: torch.dtype):
    def entry(generate: Callable, label: str, count: int, notes: list[str]) -> Entry:
        more = args.new + 1
        told = Entry(lambda: generate(ids, more), label, count, notes)
        told.check = lambda: (_shortfall(arch, weights, generate(ids, more)[0], args.prompt), None)
        told.seconds = lambda device: _a_token(generate, ids, args.new, device)
        return told

    def ours(path: str) -> Entry:
        model = arch.ours(weights, args.device, dtype).eval()
        generate, label = paths.generator(model, path, args.new + 1)
        generate(ids, 2)  # so that a failure is seen here
        return entry(generate, label, arch.cost.parameters, [])

    def theirs(build: Callable[[], Peer], name: str) -> Entry:
        peer = build()
        peer.model.eval()
        return entry(torch.inference_mode()(peer.generate), peer.label, peer.parameters, peer.notes)

    return contenders.line_up(args, paths.INFERENCE, ours, theirs, lambda m: m.build(arch, weights, args.device, dtype))


def _a_token(generate: Callable, ids: Tensor, new: int, device: str) -> float:
    many = seconds(lambda: generate(ids, new + 1), device)
    return max(1e-9, (many - seconds(lambda: generate(ids, 1), device)) / new)


def _shortfall(arch: Architecture, weights: dict, row: Tensor, prompt: int) -> float:
    """row (t,): a prompt and what was chosen after it."""
    logits = arch.truth(weights, row)[prompt - 1 : -1]
    chosen = logits.gather(1, row[prompt:, None])[:, 0]
    return float(((logits.amax(1) - chosen) / logits.square().mean(1).sqrt()).mean())


# -------------------------------------------------------------------------------------------------------------- prefill
def _readers(arch: Architecture, weights: dict, args: Namespace, ids: Tensor, dtype: torch.dtype, truth: Tensor):
    def ours(path: str) -> Entry:
        model = arch.ours(weights, args.device, dtype).eval()
        read, label = paths.reader(model, path)
        read(ids)  # so that a failure is seen here
        error = relative(paths.read_eagerly(model, ids)[0], truth)
        return Entry(lambda: read(ids), label, arch.cost.parameters, check=lambda: (error, None))

    def theirs(build: Callable[[], Peer], name: str) -> Entry:
        peer = build()
        peer.model.eval()
        read = torch.inference_mode()(peer.prefill)
        check = lambda: (relative(read(ids)[0], truth), None)  # noqa: E731
        return Entry(lambda: read(ids), peer.label, peer.parameters, peer.notes, check=check)

    return contenders.line_up(args, paths.INFERENCE, ours, theirs, lambda m: m.build(arch, weights, args.device, dtype))
