"""Where a model can live and in what numbers, and whether it fits: asked before anything is allocated."""

from __future__ import annotations

import torch

from hybridlm.errors import SpecError
from hybridlm.ops.backend import memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def require_memory(nbytes: int, device: torch.device | str, what: str, error: type[ValueError] = SpecError) -> None:
    """Raise `error` if nbytes are more than the device has; the meta device has room for everything."""
    held = memory(device)
    if held is not None and nbytes > held:
        raise error(f"{what} takes {readable_bytes(nbytes)}, and {device} has {readable_bytes(held)}; make it smaller")


def require_device(device: torch.device | str, error: type[ValueError] = SpecError) -> torch.device:
    """The device; `error` if this machine has none such."""
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as reason:
        raise error(f"device: {device!r} is not there: {str(reason).splitlines()[0]}") from reason


def require_dtype(dtype: torch.dtype, error: type[ValueError] = SpecError) -> torch.dtype:
    """The dtype; `error` if models do not compute in it."""
    if dtype not in DTYPES:
        raise error(f"dtype: {dtype!r}; it must be one of {', '.join(map(str, DTYPES))}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """As a user writes it: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def readable_bytes(nbytes: int) -> str:
    power = min((max(nbytes, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{nbytes / 1024**power:,.1f} {UNITS[power]}"
