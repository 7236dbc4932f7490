"""Combinations of versions and hardware that are known to give wrong numbers, or nothing at all. A table of data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

Versions = tuple[int, ...]


class Machine(NamedTuple):
    """What the table asks about. versions: None: not installed. troubles: why a package cannot be called."""

    versions: dict[str, str | None]
    capability: tuple[int, int] | None
    cudnn: int | None
    troubles: dict[str, str | None]
    unseen_gpu: bool = False

    def between(self, package: str, low: str, high: str) -> bool:
        """Whether its version is low <= version <= high."""
        found = self.versions.get(package)
        return found is not None and numbers(low) <= numbers(found) <= numbers(high)

    @property
    def hopper(self) -> bool:
        return self.capability is not None and self.capability[0] == 9

    def says(self, package: str, words: str) -> bool:
        """Whether what is wrong with it is told in these words."""
        return words in (self.troubles.get(package) or "")


class Known(NamedTuple):
    """applies: to which machines. what: what happens there, and what to do. source: where it is documented."""

    name: str
    applies: Callable[[Machine], bool]
    what: str
    source: str


KNOWN = (
    Known(
        "triton 3.4 to 3.7.0 on Hopper",
        lambda m: m.hopper and m.between("triton", "3.4", "3.7.0"),
        "tl.dot(tl.trans(x), ...) of what another dot gave is compiled wrongly. hybridlm's kernels never do that; "
        "those of other packages may. Triton 3.7.1, which PyTorch 2.13 brings, is right.",
        "https://github.com/fla-org/flash-linear-attention/issues/640",
    ),
    Known(
        "cuDNN attention with a mask on Hopper",
        lambda m: m.hopper and m.cudnn is not None and m.cudnn < 92600,
        "before cuDNN 9.26 the backward pass of its attention gives NaN where a mask is passed, the length is 64 more "
        "than a multiple of 128, and the scores of a row are very negative. hybridlm passes it none; others may.",
        "https://github.com/pytorch/pytorch/issues/196678",
    ),
    Known(
        "mamba-ssm without its scan",
        lambda m: m.says("mamba-ssm", "selective_scan"),
        "it is installed but was built without selective_scan_cuda, the scan of Mamba; Mamba-2's kernels are there. "
        "Build it with MAMBA_KEEP_CUDA_BUILD=TRUE.",
        "https://github.com/state-spaces/mamba/pull/977",
    ),
    *(
        Known(
            f"{package} built for another torch",
            lambda m, package=package: m.says(package, "undefined symbol"),
            "its compiled part does not fit the torch that is installed: install it again, against this one.",
            source,
        )
        for package, source in {
            "flash-attn": "https://github.com/Dao-AILab/flash-attention/issues/1832",
            "mamba-ssm": "https://github.com/state-spaces/mamba/issues/317",
            "causal-conv1d": "https://github.com/state-spaces/mamba/issues/317",
        }.items()
    ),
    Known(
        "lightning 2.6.2 and 2.6.3",
        lambda m: m.between("lightning", "2.6.2", "2.6.3") or m.between("pytorch-lightning", "2.6.2", "2.6.3"),
        "malicious uploads that steal credentials when they are imported. Treat every key on this machine as stolen.",
        "https://github.com/Lightning-AI/pytorch-lightning/security/advisories/GHSA-w37p-236h-pfx3",
    ),
    Known(
        "a GPU that torch does not use",
        lambda m: m.unseen_gpu,
        "there is an NVIDIA driver, but this torch has no CUDA or cannot start it: install a CUDA build of torch.",
        "https://pytorch.org/get-started/locally",
    ),
)


def known_bad(machine: Machine) -> list[dict[str, Any]]:
    """The rows of the table that are true of this machine."""
    return [{"name": k.name, "what": k.what, "source": k.source} for k in KNOWN if k.applies(machine)]


def numbers(version: str) -> Versions:
    """ "2.11.0+cu130" -> (2, 11, 0): what can be compared."""
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part)
