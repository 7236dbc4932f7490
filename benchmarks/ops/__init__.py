"""`ops`: single ops, every backend of ours beside the packages' functions, forward and with backward."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.contenders import listed, whole_numbers
from benchmarks.contest import AbsentError, Contender, Entry, Work, contest
from benchmarks.ops import attention, lti, pointwise, recurrences
from benchmarks.ops.case import Case, Sizes, Tensors, Way, error_of, leaves
from benchmarks.peers import KNOWN
from benchmarks.run import Run
from benchmarks.timing import free, largest_block
from hybridlm.compose.memory import dtype_name
from hybridlm.errors import UnsupportedError
from hybridlm.ops import backend

EXAMPLE = "python -m benchmarks ops --peer mamba_ssm,fla --ops ssd,attention --lengths 512,2048,16384"
ERROR = "relative RMS to float64 on a part: of y, and of a gradient, the larger one"
CASES: dict[str, Callable[[Sizes, int], Case]] = {
    "ssd": recurrences.ssd_case,
    "attention": attention.attention_case,
    "scan": recurrences.scan_case,
    "window": lambda s, length: attention.attention_case(s, length, s.window),
    "conv": pointwise.conv_case,
    "gated_norm": pointwise.gated_norm_case,
    "norm": pointwise.norm_case,
    "delta": recurrences.delta_case,
    "long_conv": lti.long_conv_case,
    "s4": lambda s, length: lti.layer_case(s, length, "s4"),
    "s4d": lambda s, length: lti.layer_case(s, length, "s4d"),
    "loss": pointwise.loss_case,
}
ONCE = {"conv": 4096, "gated_norm": 4096, "norm": 4096, "loss": 4096, "s4": 4096, "s4d": 4096}
"""Ops whose time does not ask for the length, or that the literature states at one: the only length they run at."""
PACKAGES = {"mamba_ssm": "mamba_ssm", "fla": "fla", "causal_conv1d": "mamba_ssm"}  # way: the peer it comes with
PLAIN = "hybridlm reference"
"""Timed where none of the backends that were asked for has the op."""
SPECIAL_RATE = 16 * 1.83e9
"""Exponentials a second and multiprocessor: 16 a clock on Hopper."""


def add_options(parser: ArgumentParser) -> None:
    """What, how long, by whom."""
    known = ",".join(CASES)
    parser.add_argument("--ops", default=known, help=f"commas between; ssd:4096 at that length alone; default {known}")
    parser.add_argument("--lengths", default="", help="default 128,512,2048,4096,16384,65536; shorter on a CPU")
    parser.add_argument("--tokens", type=int, help="of a call, in rows of each length; default 65536, 1024 on a CPU")
    parser.add_argument("--backends", default="triton,vendor", help="of ours; default triton,vendor; plain: reference")
    parser.add_argument("--peer", default="", help="mamba_ssm,fla; PyTorch's and flash-attn's attention always run")
    parser.add_argument("--forward-only", action="store_true", help="no backward")
    parser.set_defaults(rounds=2, warmup=1, budget=0.1)


def sizes(args: Namespace) -> Sizes:
    """Full size on a GPU."""
    gpu = args.device.startswith("cuda")
    found = Sizes(device=args.device, seed=args.seed) if gpu else Sizes.small(seed=args.seed)
    return replace(found, tokens=args.tokens) if args.tokens else found


def check(args: Namespace) -> None:
    """ValueError, before anything is measured: a length, backend or package that there is not."""
    whole_numbers(args.lengths, "--lengths")
    listed(args.backends, backend.BACKENDS, "--backends")
    listed(args.peer, KNOWN, "--peer")


def main(args: Namespace) -> int:
    """Every op at every length; the most important first."""
    check(args)
    own, s = _own_lengths(args.ops), sizes(args)
    names = listed(",".join(own), tuple(CASES), "--ops")
    run = Run(args, f"ops, {s.tokens:,} tokens, {dtype_name(s.dtype)}", ERROR)
    standard = [128, 512, 2048, 4096, 16384, 65536] if s.device.startswith("cuda") else [64, 256]
    lengths = whole_numbers(args.lengths, "--lengths") or standard
    for name in names:
        once = min(own[name] or ONCE.get(name, 0), s.tokens)
        for length in [once] if once else [length for length in lengths if length <= s.tokens]:
            measure(run, CASES[name](s, length), args.peer, args.backends, not args.forward_only)
    return run.finish()


def _own_lengths(text: str) -> dict[str, int]:
    """ "ssd:4096,attention" -> {"ssd": 4096, "attention": 0}. ValueError: what stands after the colon is no length."""
    parts = [part.strip().partition(":") for part in text.split(",") if part.strip()]
    return {name: whole_numbers(length, "--ops")[0] if length else 0 for name, _, length in parts}


def measure(run: Run, case: Case, peers: str, backends: str, backward: bool = True) -> None:
    """Rows of a case: forward, and forward with backward."""
    if run.left < 0:
        return run.say(f"{case.name}: the time limit came first")
    asked = set(listed(peers, KNOWN, "--peer"))
    ways = {name: way for name, way in case.ways.items() if _takes_part(name, way, asked, backends)}
    torch.manual_seed(run.args.seed)
    try:
        inputs = case.draw()
    except torch.cuda.OutOfMemoryError:
        return run.say(f"{case.name}: no room for the inputs")
    moved = sum(tensor.nbytes for tensor in inputs.values())
    for trains in (False, True)[: 1 + backward]:
        work = _work(run, case, inputs, moved, trains)
        contest(run, work, [_contender(case, way, name, inputs, trains) for name, way in ways.items()], cycles=False)
        if PLAIN in case.ways and not any(row.case == work.case and row.ours and row.seconds for row in run.rows):
            contest(run, work, [_contender(case, case.ways[PLAIN], PLAIN, inputs, trains)], cycles=False)
    del inputs
    free(run.device, cycles=False)
    return None


def _takes_part(name: str, way: Way, peers: set[str], backends: str) -> bool:
    if name.startswith("hybridlm "):
        return name.split()[1] in {*backends.split(","), "auto"}
    return name not in PACKAGES or PACKAGES[name] in peers


def _work(run: Run, case: Case, inputs: Tensors, moved: int, trains: bool) -> Work:
    """Inputs are read and the output is written; backward reads both and its gradient, and writes the inputs'."""
    out = max(tensor.nbytes for tensor in inputs.values() if tensor.is_floating_point())
    flops = case.flops * (case.backward if trains else 1)
    name = f"{case.name}, {'forward + backward' if trains else 'forward'}"
    return Work(name, case.tokens, flops, (3 * moved + 2 * out) if trains else moved + out, _special(run, case))


def _special(run: Run, case: Case) -> float:
    """Seconds of the exponentials of a forward pass on all multiprocessors."""
    if not run.device.startswith("cuda"):
        return 0.0
    return case.special / (SPECIAL_RATE * torch.cuda.get_device_properties(run.device).multi_processor_count)


def _contender(case: Case, way: Way, name: str, inputs: Tensors, trains: bool) -> Contender:
    return Contender(name, lambda: _entry(case, way, inputs, trains), ours=way.ours)


def _entry(case: Case, way: Way, inputs: Tensors, trains: bool) -> Entry:
    """Ready to be called, and checked."""
    if (why := way.missing()) is not None:
        raise NotImplementedError(why)
    given, wanted = leaves(case, way.prepare(inputs))
    held: dict[str, torch.Tensor] = {}

    def work() -> None:
        with torch.set_grad_enabled(trains):
            y = way.run(given)
        if trains:
            held.setdefault("weight", torch.randn_like(y))
            held["grads"] = torch.autograd.grad(y, [*wanted, *way.weights()], held["weight"], allow_unused=True)
        held["y"] = y.detach()

    def check() -> tuple[float, None]:
        notes.extend(_ran(work, way))
        names = case.wanted(given)
        grads = dict(zip(names, held["grads"], strict=False)) if trains and way.leaf is None else None
        error = error_of(case, way, inputs, held["y"], grads, held.get("weight", held["y"]))
        held.clear()
        if case.blocks and (largest := largest_block(work, str(next(iter(given.values())).device))):
            notes.append(f"largest block {largest / 2**20:,.0f} MiB")
        return error, None

    notes: list[str] = []
    return Entry(work, "" if way.ours else way.label, notes=notes, check=check, leave=held.clear)


def _ran(work: Callable[[], None], way: Way) -> list[str]:
    """Make a call; where the op chooses, which backend it took. AbsentError: the one that was named has none."""
    try:
        with backend.trace() as seen:
            work()
    except UnsupportedError as error:
        raise (AbsentError(str(error)) if way.ours else error) from error
    return [f"took {', '.join(dict.fromkeys(one.backend for one in seen))}"] if way.chooses else []
