"""`ratios`: what the literature says of SSD, the selective scan, attention, models and throughput, measured here."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import pairwise
from math import exp, log

from benchmarks import ops
from benchmarks.contenders import listed, whole_numbers
from benchmarks.ops.attention import attention_case
from benchmarks.ops.recurrences import scan_case, ssd_case
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.whole import generation, training

EXAMPLE = "python -m benchmarks ratios --peer mamba_ssm"
ERROR = "of kernels: relative RMS to float64 on a part, of y and of a gradient; whole models: not measured here"
PARTS = ("kernels", "training", "generation")
STATE = 64
"""N, as in the paper's figures."""
SCANS = (16, STATE)
"""N at which the selective scan is timed: that of Mamba-1, and SSD's."""
LENGTHS = [128, 512, 1024, 2048, 4096, 16384, 32768]


def add_options(parser: ArgumentParser) -> None:
    """What of it, and how large."""
    parser.add_argument("--parts", default=",".join(PARTS), help=f"commas between; default all: {','.join(PARTS)}")
    parser.add_argument("--lengths", default="", help=f"default {','.join(map(str, LENGTHS))}; shorter on a CPU")
    parser.add_argument("--tokens", type=int, help="of a call; default 65536 on a GPU, 1024 on a CPU")
    parser.add_argument("--backends", default="triton", help="of ours; default triton; plain: reference")
    parser.add_argument("--peer", default="", help="mamba_ssm; PyTorch's and flash-attn's attention always run")
    parser.add_argument("--d-model", type=int, default=1024, help="of whole models; default 1024")
    parser.add_argument("--vocab-size", type=int, default=50304, help="of whole models; default 50304")
    parser.add_argument("--layers", type=int, default=12, help="of the Transformer; Mamba gets twice as many")
    parser.add_argument("--prompt", type=int, default=2048, help="of generation; default 2048")
    parser.add_argument("--new", type=int, default=64, help="tokens of a timed generation; default 64")
    parser.add_argument("--first", type=int, default=64, help="batch at which generation begins to double; default 64")
    parser.set_defaults(rounds=2, warmup=1, calls=3, budget=0.1)


def main(args: Namespace) -> int:
    """Kernels, then whole models."""
    ops.check(args)
    parts, s = listed(args.parts, PARTS, "--parts"), ops.sizes(args)
    run = Run(args, f"ratios, {s.tokens:,} tokens", ERROR)
    standard = LENGTHS if s.device.startswith("cuda") else [64, 256]
    lengths = whole_numbers(args.lengths, "--lengths") or standard
    lengths = [length for length in lengths if length <= s.tokens]
    if "kernels" in parts:
        kernels(run, s, lengths)
    if "training" in parts:
        training(run, args, s, lengths)
    if "generation" in parts:
        generation(run, args)
    return run.finish()


def kernels(run: Run, s: ops.Sizes, lengths: list[int]) -> None:
    """SSD beside attention, then beside the scan, from the lengths that the answers hang on outwards."""
    for length in sorted(lengths, key=lambda length: abs(log(length / 2048))):
        for case in (ssd_case(s, length, STATE), attention_case(s, length, chosen=False)):
            ops.measure(run, case, "", run.args.backends)  # `ops` has mamba_ssm's, which is tuned for a minute first
        if length in _scanned(lengths):
            for n in SCANS:
                ops.measure(run, scan_case(s, length, n), run.args.peer, run.args.backends)
    for trains in (False, True):
        run.findings += kernel_findings(run.rows, lengths, "forward + backward" if trains else "forward")
    run.write()


def _scanned(lengths: list[int]) -> list[int]:
    """Lengths of the selective scan, whose time does not ask for them: three, the longest ones up to 16,384."""
    return [length for length in lengths if length <= 16384][-3:]


def kernel_findings(rows: list[Row], lengths: list[int], how: str) -> list[tuple[str, str, str]]:
    """The three ratios that are about kernels, for `how`: forward, or forward + backward."""
    found = []
    times = {name: _times(rows, name, lengths, how) for name in ("ssd", f"selective scan N={STATE},", "attention")}
    scan = times[f"selective scan N={STATE},"]
    shared = [length for length in lengths if length in times["ssd"] and length in scan]
    if shared:
        said = [f"{scan[n] / times['ssd'][n]:.1f} at {n:,}" for n in shared]
        found.append((f"selective scan over SSD, N={STATE}, {how}", "2 to 8", ", ".join(said)))
    if crossing := _crossing(times["ssd"], times["attention"]):
        found.append((f"length from which SSD beats the best attention, {how}", "about 2,000", crossing))
    flash = _times(rows, "attention", lengths, how, of=("flash_attn", "torch flash"))
    if long := sorted(flash.keys() & times["ssd"].keys())[-2:]:
        ratio = ", ".join(f"{flash[n] / times['ssd'][n]:.1f} at {n:,}" for n in long)
        found.append((f"FlashAttention-2 over SSD, {how}", "about 6 at 16,384", ratio))
    return found


def _times(rows: list[Row], op: str, lengths: list[int], how: str, of: tuple[str, ...] = ()) -> dict[int, float]:
    """{length: seconds of the fastest}, of everyone or of some contenders."""
    best: dict[int, float] = {}
    for row in rows:
        length = next((n for n in lengths if f", L={n:,}, " in row.case), None)
        fits = row.case.startswith(op) and row.case.endswith(f", {how}") and (not of or row.contender in of)
        if length and fits and row.median:
            best[length] = min(best.get(length, row.median), row.median)
    return best


def _crossing(ssd: dict[int, float], attention: dict[int, float]) -> str:
    """Where attention's time passes SSD's, on a line between two lengths in logarithms."""
    lengths = sorted(ssd.keys() & attention.keys())
    gaps = [log(attention[n] / ssd[n]) for n in lengths]
    for (a, low), (b, high) in pairwise(zip(lengths, gaps, strict=True)):
        if low < 0 <= high:
            return f"{exp(log(a) + (log(b) - log(a)) * -low / (high - low)):,.0f}"
    if not gaps:
        return ""
    return f"below {lengths[0]:,}" if gaps[0] >= 0 else f"above {lengths[-1]:,}"
