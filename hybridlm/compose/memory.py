"""What fits in this machine's memory, asked before anything is allocated."""

from __future__ import annotations

import os

import torch

from hybridlm.errors import SpecError


def require_memory(nbytes: int, device: torch.device | str, what: str, error: type[ValueError] = SpecError) -> None:
    """Raise `error` if nbytes are more than the device has; the meta device has room for everything."""
    held = available(torch.device(device))
    if held is not None and nbytes > held:
        raise error(f"{what} takes {_readable(nbytes)}, and {device} has {_readable(held)}; make it smaller")


def available(device: torch.device) -> int | None:
    """Bytes of memory that the device has in all, or None where that is not known."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _readable(nbytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if nbytes < 1024 or unit == "PiB":
            return f"{nbytes:,.0f} {unit}" if nbytes >= 100 or unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    raise AssertionError
