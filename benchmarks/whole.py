"""Whole models for `ratios`: stacks of Mamba and a hybrid beside a Transformer of the same size, all hybridlm's."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import contenders, ops, paths
from benchmarks.architecture import Architecture
from benchmarks.contest import Contender, Entry, NoTimeError, Work, contest
from benchmarks.inference import dtype_of, prompts
from benchmarks.rows import Row
from benchmarks.run import Run, reason
from benchmarks.timing import forget_peak, free, peak, seconds
from benchmarks.train import autocast, step_of, under
from hybridlm.compose.cost import BACKWARD
from hybridlm.compose.model import HybridLM
from hybridlm.infer import Decoder, release
from hybridlm.state import ModelState

DOUBLINGS = 8
FALLEN = 0.97
"""Of the best rate so far: below it a larger batch is not tried."""


def stacks(args: Namespace) -> dict[str, Architecture]:
    """A Transformer of `layers` layers with MLPs and rotary positions, and Mamba, Mamba-2 and a hybrid of its size.

    A layer of attention with its MLP has 12 d^2 parameters, one of Mamba 6: there are twice as many of those.
    """
    sizes = {"d_model": args.d_model, "head_dim": min(64, args.d_model), "vocab_size": args.vocab_size}
    return {
        "Transformer": Architecture(f"A{args.layers}", **sizes, mlp="swiglu", rope=True),
        "Mamba": Architecture(f"m{2 * args.layers}", **sizes),
        "Mamba-2": Architecture(f"M{2 * args.layers}", **sizes),
        "hybrid": Architecture(f"(M5A){max(1, args.layers // 3)}", **sizes),
    }


# ------------------------------------------------------------------------------------------------------------- training
def training(run: Run, args: Namespace, s: ops.Sizes, lengths: list[int]) -> None:
    """Training steps at each length, half as many tokens as kernels get, in two rows at least.

    On a GPU blocks are compiled, once for all lengths: a model serves every length.
    """
    tokens, first = max(s.tokens // 2, 1), len(run.rows)
    archs = {name: arch for name, arch in stacks(args).items() if name != "Mamba"}
    args.precision = None
    entries: dict[str, _Learner] = {}
    for length in [length for length in lengths if 2 * length <= tokens]:
        batch = tokens // length
        for name, arch in archs.items():
            flops = BACKWARD * batch * arch.forward_flops(length)
            work = Work(f"training L={length:,}", batch * length, flops, arch.step_bytes())
            ids = prompts(arch, batch, args, length)
            make = partial(_entry, entries, name, arch, args, ids)
            contest(run, work, [Contender(name, make, ours=True)])
            run.rows[-1].peak = None  # the model was there before
    run.findings += training_findings(run.rows[first:])
    run.write()


def training_findings(rows: list[Row]) -> list[tuple[str, str, str]]:
    """Tokens a second of the others over the Transformer's, at each length."""
    found = []
    base = {row.case: row.median for row in rows if row.contender == "Transformer" and row.median}
    for name in ("Mamba-2", "hybrid"):
        mine = {row.case: row.median for row in rows if row.contender == name and row.median and row.case in base}
        said = [f"{base[case] / t:.2f} at {case.removeprefix('training L=')}" for case, t in mine.items()]
        if said:
            found.append((f"training tokens/s, {name} over Transformer", "below 1 when short", ", ".join(said)))
    return found


class _Learner:
    """A model with its optimizer, and the tokens that it learns from next."""

    def __init__(self, arch: Architecture, args: Namespace, path: str):
        self.model = arch.ours(arch.weights(args.device, args.seed), args.device, torch.float32).train()
        self.label = f"{arch.pattern}, {path if path == 'eager' else paths.compiled(self.model, dynamic=True)}"
        self.ids = torch.empty(0)
        recipe = partial(under, args.device, autocast(args))
        self.step = step_of(self.model, lambda: self.model(self.ids, targets=self.ids).loss, recipe)


def _entry(entries: dict[str, _Learner], name: str, arch: Architecture, args: Namespace, ids: torch.Tensor) -> Entry:
    """The stack's model, made when it is first asked for."""

    def ready() -> Entry:
        entries[name].ids = ids
        return Entry(entries[name].step, entries[name].label, arch.cost.parameters)

    def ours(path: str) -> Entry:
        entries[name] = _Learner(arch, args, path)
        entry = ready()
        entry.work()  # compiles, so that a failure is seen here
        return entry

    if name in entries:
        return ready()
    return contenders.falling_back(ours, "compile" if args.device.startswith("cuda") else "eager")


# ----------------------------------------------------------------------------------------------------------- generation
def generation(run: Run, args: Namespace) -> None:
    """Tokens a second of decoding behind a prompt, the batch doubled until memory or time is out, or it gets slower."""
    best: dict[str, Row] = {}
    args.dtype = None
    for name, arch in stacks(args).items():
        for row in _ladder(run, arch, name, args):
            run.add(row)
            if row.median and (name not in best or _rate(row) > _rate(best[name])):
                best[name] = row
            elif row.median and _rate(row) < FALLEN * _rate(best[name]):
                break
    run.findings += generation_findings(best)
    run.write()


def generation_findings(best: dict[str, Row]) -> list[tuple[str, str, str]]:
    """Each stack's best rate over the Transformer's."""
    base, found = best.get("Transformer"), []
    for name, row in best.items():
        if base and row is not base:
            said = f"{_rate(row) / _rate(base):.1f} ({_said(row)}; {_said(base)})"
            literature = "4 to 5" if name != "hybrid" else ""
            found.append((f"best generation throughput, {name} over an equal Transformer", literature, said))
    return found


def _rate(row: Row) -> float:
    return row.tokens / row.median


def _said(row: Row) -> str:
    return f"{row.contender} {_rate(row):,.0f} tokens/s at {row.case.removeprefix('generation ')}"


def _ladder(run: Run, arch: Architecture, name: str, args: Namespace):
    """Rows of batch `first`, twice it, ... until one fails."""
    dtype = dtype_of(args)
    model = arch.ours(arch.weights(args.device, args.seed), args.device, dtype).eval()
    room = args.prompt + args.new * (args.rounds + 1) + 8
    with torch.inference_mode():
        one = model(prompts(arch, 1, args), state=model.init_state(1, room)).state
    for batch in (args.first << i for i in range(DOUBLINGS)):
        context = args.prompt + args.new
        floor = run.ceilings.floor(batch * arch.cost.decoding(context).matmul, arch.token_bytes(context, batch, dtype))
        row = Row(f"generation batch {batch}", name, arch.pattern, True, tokens=batch, floor=floor)
        row.parameters = arch.cost.parameters
        _climb(run, row, model, lambda batch=batch: one.select([0] * batch), args)
        yield row
        if row.why:
            break


def _climb(run: Run, row: Row, model: HybridLM, state: Callable[[], ModelState], args: Namespace) -> None:
    """Time a batch from copies of a state; what stops it is the row's reason."""
    free(run.device)
    forget_peak(run.device)
    try:
        if run.left < 0:
            raise NoTimeError("the time limit came first")
        gpu = run.device.startswith("cuda")
        decoder = Decoder(model, state(), cuda_graph=True if gpu else None)
        decoder.read(torch.ones(row.tokens, 1, dtype=torch.int64, device=run.device))
        decoder.decode(min(4, args.new))
        row.seconds = [seconds(lambda: decoder.decode(args.new), run.device) / args.new for _ in range(args.rounds)]
        row.peak = peak(run.device) or None
        del decoder
    except NoTimeError as stop:
        row.why = str(stop)
    except Exception as error:
        row.why = reason(error)
        run.say(f"{row.case}: {row.contender}: {row.why}")
    release(model)
    free(run.device)
    if row.median:
        run.say(f"{row.case}: {row.contender}: {row.tokens / row.median:,.0f} tokens/s")
