"""What fits in this machine's memory, asked before anything is allocated."""

from __future__ import annotations

import torch

from hybridlm.errors import SpecError
from hybridlm.ops.backend import memory

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def require_memory(nbytes: int, device: torch.device | str, what: str, error: type[ValueError] = SpecError) -> None:
    """Raise `error` if nbytes are more than the device has; the meta device has room for everything."""
    held = memory(device)
    if held is not None and nbytes > held:
        raise error(f"{what} takes {_readable(nbytes)}, and {device} has {_readable(held)}; make it smaller")


def _readable(nbytes: int) -> str:
    power = min((max(nbytes, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{nbytes / 1024**power:,.1f} {UNITS[power]}"
