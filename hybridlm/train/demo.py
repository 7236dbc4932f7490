"""The demonstration: four minutes of training on this Python's own standard library, and what came of it.

    python -m hybridlm.train.demo --minutes 4

Trains an (M3A)2 byte-level hybrid through `hybridlm fit`, sets its bits per byte on held-out files beside those of a
bigram model and of gzip on the same bytes, and lets it write a few lines of Python.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.table import Table

import hybridlm as hl
from hybridlm.command_line import Parser
from hybridlm.compose.model import HybridLM
from hybridlm.files import atomic_write
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.resources import config_path
from hybridlm.train import cli
from hybridlm.train.console import Terminal
from hybridlm.train.data import TextData
from hybridlm.train.metrics import TokenScore, bits_per_byte
from hybridlm.train.samples import Batch
from hybridlm.train.tokens import TokenBin

CONTEXT, BATCH, SCORED = 256, 4, 64  # SCORED: batches of held-out text, a fair sample
TRAINING_SHARE = 0.85  # of the time; the rest is validation, scoring and writing


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; the exit code of the training if that failed, else 0."""
    about = __doc__.split("\n")[0]
    parser = Parser(prog="python -m hybridlm.train.demo", description=about, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=4.0, help="time for training (default 4)")
    parser.add_argument("--run", default=None, help="run folder (default runs/demo/<next number>)")
    parser.add_argument("--prompt", default="def ", help="what the model goes on from")
    options = parser.parse_args(argv)
    run = Path(options.run) if options.run else cli.next_free(Path("runs/demo"))
    console = Terminal()
    spec = config_path("models/demo")
    steps = affordable_steps(spec, options.minutes * 60 * TRAINING_SHARE)
    console.print(f"[bold]{options.minutes:g} minutes: {steps} steps of {BATCH * CONTEXT} bytes[/] into {run}")
    code = cli.main(training_command(spec, run, steps, options.minutes))
    if code != 0:
        return code
    model = hl.load(run).eval()
    results = compare(model)
    atomic_write(run / "results.json", json.dumps({"steps": steps, "bits_per_byte": results}, indent=2).encode())
    console.print(table(results))
    console.print(f"curve: {run / 'loss.png'}   numbers: {run / 'results.json'}\n", highlight=False)
    console.print(write_on(model, options.prompt), markup=False, highlight=False)
    return 0


def affordable_steps(spec: Path, seconds: float) -> int:
    """How many training steps this machine makes in that time, from a few that are timed."""
    model = hl.build(spec, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(256, (BATCH, CONTEXT))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        model(ids, segment_ids=torch.zeros_like(ids), targets=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return max(10, int(seconds / median(times)))  # the first one is slow


def training_command(spec: Path, run: Path, steps: int, minutes: float) -> list[str]:
    """The command line that a user would type. max_time is the brake, should the machine have become busy."""
    settings = {
        "config": config_path("quickstart/demo"),
        "run": run,
        "model.spec": spec,
        "data.context": CONTEXT,
        "data.batch_size": BATCH,
        "trainer.max_steps": steps,
        "trainer.max_time": _clock(timedelta(minutes=1.1 * minutes)),
        "trainer.val_check_interval": max(5, steps // 4),
    }
    return ["fit", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def _clock(span: timedelta) -> str:
    seconds = max(5, round(span.total_seconds()))
    return f"{seconds // 86400:02}:{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def compare(model: HybridLM) -> dict[str, float]:
    """Bits per byte of held-out text: the model and a bigram model on the same sample of it, gzip on all of it."""
    data = TextData(context=CONTEXT, batch_size=BATCH)
    data.setup()
    batches = [batch for batch, _ in zip(data.val_dataloader(), range(SCORED), strict=False)]
    return {
        "this hybrid": model_bits(model, batches),
        "bigram model": bigram_bits(data.bins.train, batches),
        "gzip": gzip_bits(data.bins.held_out),
    }


@torch.no_grad()
def model_bits(model: HybridLM, batches: list[Batch]) -> float:
    """Bits per byte of a byte-level model."""
    score = TokenScore()
    for batch in batches:
        loss = model(batch["ids"], segment_ids=batch["segment_ids"], targets=batch["targets"]).loss
        score.update(loss, batch["targets"])
    return float(bits_per_byte(score.compute(), 1.0))


def bigram_bits(train: TokenBin, batches: list[Batch]) -> float:
    """Bits per byte of P(b | a) = (1 + count of ab) / (256 + count of a), counted over the training text."""
    text = train.read().astype(np.int64)
    counts = 1 + np.bincount(text[:-1] * 256 + text[1:], minlength=1 << 16).reshape(256, 256)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    pairs = [
        (batch["ids"][kept], batch["targets"][kept]) for batch in batches for kept in [batch["targets"] != IGNORED]
    ]
    before, after = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return float(bits[before, after].mean())


def gzip_bits(held_out: TokenBin) -> float:
    """Bits per byte of the whole held-out text as one .gz file of the strongest setting."""
    text = held_out.read().astype(np.uint8).tobytes()
    return 8 * len(gzip.compress(text, compresslevel=9)) / len(text)


def table(results: dict[str, float]) -> Table:
    """The contestants, best first."""
    shown = Table("", "bits per byte", title="held-out text", title_justify="left")
    for name, bits in sorted(results.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf):
        shown.add_row(name, f"{bits:.3f}")
    return shown


def write_on(model: HybridLM, prompt: str, length: int = 240) -> str:
    """The prompt and what the model makes of it."""
    ids = torch.tensor([list(prompt.encode())])
    out = hl.generate(model, ids, max_new_tokens=length, temperature=1.0, top_p=0.95, seed=0)
    return bytes(out[0].tolist()).decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
