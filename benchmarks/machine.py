"""What a figure was measured on, and how fast that machine can possibly be."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.timing import median_seconds
from hybridlm.compose.memory import dtype_name
from hybridlm.ops.backend import devices

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "flash-attn", "transformers", "fla-core", "numpy")


@dataclass(frozen=True)
class Ceilings:
    """The two rates that bound everything: flops a second of a large matrix product, bytes a second of a large copy.

    Bytes are counted twice, read and written. dtype: of the product.
    """

    flops: float
    bytes: float
    dtype: str = ""

    def floor(self, flops: float, moved: float) -> float:
        """Seconds below which no version of the work can come: the longer of its two times."""
        return max(flops / self.flops, moved / self.bytes)


def describe(device: str) -> dict:
    """Names and versions, for the record."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "devices": dict(devices()),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ceilings(device: str) -> Ceilings:
    """Measured on the spot, on random numbers: zeros are multiplied faster."""
    gpu = device.startswith("cuda")
    size, count, dtype = (8192, 1 << 30, torch.bfloat16) if gpu else (1024, 1 << 24, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = median_seconds(lambda: torch.mm(a, b, out=out), device, calls=20 if gpu else 3)
    source = torch.randn(count, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, calls=20 if gpu else 3)
    moved = 2 * source.numel() * source.element_size()
    return Ceilings(2 * size**3 / product, moved / copy, dtype_name(dtype))
