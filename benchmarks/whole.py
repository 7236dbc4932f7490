"""Whole models for `ratios`: a Mamba stack beside a Transformer of the same size, both hybridlm's."""

from __future__ import annotations

from argparse import Namespace

import torch

from benchmarks import ops
from benchmarks.architecture import Architecture
from benchmarks.contest import Contender, Entry, Work, contest
from benchmarks.inference import dtype_of, prompts
from benchmarks.rows import Row
from benchmarks.run import Run, reason
from benchmarks.timing import forget_peak, free, peak, seconds
from benchmarks.train import autocast, step_of, under
from hybridlm.compose.cost import BACKWARD
from hybridlm.infer import Decoder, release

DOUBLINGS = 9
FIRST = 16


def pair(args: Namespace, mamba: str) -> dict[str, Architecture]:
    """A Transformer of `layers` layers with MLPs and rotary positions, and twice as many layers of Mamba."""
    sizes = {"d_model": args.d_model, "head_dim": min(64, args.d_model), "vocab_size": args.vocab_size}
    return {
        "Transformer": Architecture(f"A{args.layers}", **sizes, mlp="swiglu", rope=True),
        "Mamba-2" if mamba == "M" else "Mamba": Architecture(f"{mamba}{2 * args.layers}", **sizes),
    }


def training(run: Run, args: Namespace, s: ops.Sizes, lengths: list[int]) -> None:
    """Training steps at each length, plain calls, half as many tokens as kernels get."""
    tokens, stacks = max(s.tokens // 2, 1), pair(args, "M")
    weights = {name: arch.weights(args.device, args.seed) for name, arch in stacks.items()}
    args.precision = None
    for length in [length for length in lengths if length <= tokens]:
        rows = len(run.rows)
        for name, arch in stacks.items():
            batch = tokens // length
            flops = BACKWARD * batch * arch.forward_flops(length)
            work = Work(f"training L={length:,}", batch * length, flops, arch.step_bytes())
            contest(run, work, [_learner(arch, name, weights[name], prompts(arch, batch, args, length), args)])
        times = {row.contender: row.median for row in run.rows[rows:] if row.median}
        if len(times) == 2:
            said = f"{times['Transformer'] / times['Mamba-2']:.2f}"
            what = f"training tokens/s, Mamba-2 over Transformer, L={length:,}"
            run.findings.append((what, "below 1 when short", said))
    run.write()


def _learner(arch: Architecture, name: str, weights: dict, ids: torch.Tensor, args: Namespace) -> Contender:
    def make() -> Entry:
        model = arch.ours(weights, args.device, torch.float32).train()

        def recipe():
            return under(args.device, autocast(args))

        step = step_of(model, lambda: model(ids, targets=ids).loss, recipe, args.device)
        return Entry(step, f"{arch.pattern}, eager", arch.cost.parameters)

    return Contender(name, make, ours=True)


# ----------------------------------------------------------------------------------------------------------- generation
def generation(run: Run, args: Namespace) -> None:
    """Tokens a second of decoding behind a prompt, the batch doubled until memory or time is out: the best of each."""
    best: dict[str, Row] = {}
    args.dtype = None
    for name, arch in pair(args, "m").items():
        for row in _ladder(run, arch, name, args):
            run.add(row)
            if row.median and (name not in best or _rate(row) > _rate(best[name])):
                best[name] = row
    if len(best) == 2:
        ratio = _rate(best["Mamba"]) / _rate(best["Transformer"])
        said = f"{ratio:.1f} ({', '.join(_said(row) for row in best.values())})"
        run.findings.append(("best generation throughput, Mamba over an equal Transformer", "4 to 5", said))
    run.write()


def _rate(row: Row) -> float:
    return row.tokens / row.median


def _said(row: Row) -> str:
    return f"{row.contender} {_rate(row):,.0f} tokens/s at {row.case.removeprefix('generation ')}"


def _ladder(run: Run, arch: Architecture, name: str, args: Namespace):
    """Rows of batch 16, 32, ... until one fails."""
    dtype = dtype_of(args)
    model = arch.ours(arch.weights(args.device, args.seed), args.device, dtype).eval()
    room = args.prompt + 2 * args.new * args.rounds + 8
    with torch.inference_mode():
        one = model(prompts(arch, 1, args), state=model.init_state(1, room)).state
    for batch in (FIRST << i for i in range(DOUBLINGS)):
        context = args.prompt + args.new
        floor = run.ceilings.floor(batch * arch.cost.decoding(context).matmul, arch.token_bytes(context, batch, dtype))
        row = Row(f"generation batch {batch}", name, arch.pattern, True, tokens=batch, floor=floor)
        row.parameters = arch.cost.parameters
        _climb(run, row, model, one.select([0] * batch) if run.left > 0 else None, args)
        yield row
        if row.why:
            break


def _climb(run: Run, row: Row, model, state, args: Namespace) -> None:
    """Time a batch; what stops it is the row's reason."""
    free(run.device)
    forget_peak(run.device)
    try:
        if state is None:
            raise TimeoutError("the time limit came first")
        gpu = run.device.startswith("cuda")
        decoder = Decoder(model, state, cuda_graph=True if gpu else None)
        decoder.read(torch.ones(state.batch, 1, dtype=torch.int64, device=run.device))
        decoder.decode(min(4, args.new))
        row.seconds = [seconds(lambda: decoder.decode(args.new), run.device) / args.new for _ in range(args.rounds)]
        row.peak = peak(run.device) or None
        del decoder
    except Exception as error:
        row.why = reason(error)
        run.say(f"{row.case}: {row.contender}: {row.why}")
    release(model)
    free(run.device)
    if row.median:
        run.say(f"{row.case}: {row.contender}: {row.tokens / row.median:,.0f} tokens/s")
