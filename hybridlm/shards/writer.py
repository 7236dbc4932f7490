"""Writing the weights of a folder tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridlm.errors import CheckpointError, did_you_mean
from hybridlm.files import as_path, changing
from hybridlm.shards.layout import FORMS, INDEX, MAX_BYTES, Entry, Shard, index_of, plan_shards


class ShardWriter:
    """Writes the tensors of a folder one at a time, in any order; nothing is there until all of them are.

        with ShardWriter(folder, entries) as writer:
            for entry in entries:
                writer.write(entry.name, tensor)

    folder: is made if need be; weights that are there already are replaced as a whole. If the block is left by an error
    (a full disk is an OSError), what was there stays as it was.

    entries: names, dtypes and shapes of all tensors. max_bytes: of tensors in one file; over it there are several, and
    an index. files: the names of all files, the index included.

    CheckpointError: see `plan_shards`; a tensor that is not as its entry says, is written twice, or was never written.
    """

    def __init__(self, folder: str | Path, entries: Iterable[Entry], *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = as_path(folder)
        self._shards = plan_shards(entries, max_bytes)
        self.files = [shard.file for shard in self._shards] + [INDEX] * (len(self._shards) > 1)
        self._all = {entry.name: entry for shard in self._shards for entry in shard.entries}
        self._left = dict(self._all)
        self._at: dict[str, tuple[Path, int]] = {}
        self._changing = changing(self._folder, replaces=FORMS)

    def __enter__(self) -> ShardWriter:
        staged = self._changing.__enter__()
        try:
            for shard in self._shards:
                self._begin(shard, staged / shard.file)
            if len(self._shards) > 1:
                (staged / INDEX).write_text(index_of(self._shards), encoding="utf-8")
        except BaseException as error:
            self._changing.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self, shard: Shard, path: Path) -> None:
        header = shard.header()
        path.write_bytes(header)
        at = len(header)
        for entry in shard.entries:
            self._at[entry.name] = path, at
            at += entry.nbytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, of any device and layout in memory."""
        if name not in self._left:
            fault = "written twice" if name in self._all else f"not announced.{did_you_mean(name, self._left)}"
            raise CheckpointError(f"{self._folder}: {name}: {fault}")
        entry = self._left[name]
        if (tensor.dtype, tuple(tensor.shape)) != entry[1:]:
            found, wanted = f"{tensor.dtype} {tuple(tensor.shape)}", f"{entry.dtype} {entry.shape}"
            raise CheckpointError(f"{self._folder}: {name}: {found} instead of the {wanted} that was announced")
        path, at = self._at[name]
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(_bytes(tensor))
        del self._left[name]

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is None and self._left:
            error = CheckpointError(f"{self._folder}: never written: {', '.join(self._left)}")
            self._changing.__exit__(type(error), error, None)
            raise error
        self._changing.__exit__(kind, error, trace)


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as bytes, without a copy where it lies in one piece on the CPU."""
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def write_shards(
    folder: str | Path,
    entries: Iterable[Entry],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_bytes: int = MAX_BYTES,
) -> list[str]:
    """Write (name, tensor) pairs as they come, one in memory at a time; the names of the files. See `ShardWriter`."""
    with ShardWriter(folder, entries, max_bytes=max_bytes) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)
    return writer.files
