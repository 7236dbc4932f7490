"""TextData: windows of tokens for training, held-out windows for validation. Sample i is a function of (seed, i)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import IterableDataset

from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import DataError
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.train.samples import Batch, HeldOutSamples, StepData, mix, permute, require_counts, sample_numbers
from hybridlm.train.tokens import Bins, TokenBin, default_cache, load_tokenizer, token_bins


class TextData(StepData):
    """UTF-8 text as windows of `context` tokens, from files, folders and globs, or from Python's standard library.

    Args:
        path: files, folders or globs; without one, the standard library's own source.
        context: tokens in a window.
        batch_size: windows in a batch of one device.
        tokenizer: "bytes" (256 tokens), or a tokenizer.json (`hybridlm tokenize` trains one).
        pack: give the model segment_ids, so that the documents in a window do not see each other.
        held_out: fraction of the documents, chosen by their content, that validation uses and training never sees.
            A lone document is cut instead, and its end held out.
        separator: text between documents inside a file; without it a file is one document.
        cache: folder of the token bins; default $HYBRIDLM_CACHE or ~/.cache/hybridlm/tokens.
        seed: of the order of training windows.
        workers: processes that read ahead. Any number gives the same batches.

    A batch is a dict of (b, t) int64 tensors: ids, targets (shifted by one; -100 where the next token belongs to
    another document) and segment_ids. Every error is a DataError that says what is wrong, where, and the fix.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        context: int = 512,
        batch_size: int = 8,
        tokenizer: str = "bytes",
        pack: bool = True,
        held_out: float = 0.05,
        separator: str | None = None,
        cache: str | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        _check(context=context, batch_size=batch_size, held_out=held_out, separator=separator, workers=workers)
        self.path, self.context, self.pack = path, context, pack
        self.held_out, self.separator, self.seed = held_out, separator, seed
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self.tokenizer_path = None if tokenizer == "bytes" else Path(tokenizer).expanduser()
        self._tokenizer = load_tokenizer(tokenizer if tokenizer == "bytes" else str(self.tokenizer_path))
        self._bins: Bins | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.vocab_size

    @property
    def bins(self) -> Bins:
        """Both splits; after setup."""
        assert self._bins is not None, "call setup() first"
        return self._bins

    @property
    def bytes_per_token(self) -> float:
        """Of the held-out text: 1 for bytes. bits per byte = NLL / ln 2 / bytes_per_token."""
        return self.bins.held_out.bytes / self.bins.held_out.tokens

    def require(self, spec: ModelSpec, path: str) -> None:
        """A language model, with room for every id of the tokenizer."""
        if not spec.is_language_model:
            raise DataError(
                f"{path} has embed: {spec.input.type} and head: {spec.output.type}, and text trains embed: tokens and "
                "head: lm; for generated signals add --task signals"
            )
        if self.vocab_size > spec.vocab_size:
            raise DataError(
                f"the tokenizer makes ids up to {self.vocab_size - 1}, but {path} has vocab_size {spec.vocab_size}; "
                f"set vocab_size: {self.vocab_size} there, or choose another data.tokenizer"
            )

    def prepare_data(self) -> None:
        """Build the token bins unless the cache holds them. Runs in one process of each machine."""
        if self._bins is None:
            rank_zero_info(f"data: {self._open().summary()}")

    def setup(self, stage: str | None = None) -> None:
        """Open the bins and check that each split fills a window."""
        self._bins = self._bins or self._open()
        for split in (self.bins.train, self.bins.held_out):
            if split.tokens <= self.context:
                raise DataError(
                    f"data.context: {self.context} tokens, but the {split.split.replace('_', '-')} text holds "
                    f"{split.tokens}; it must hold at least context + 1. Lower data.context or give more text"
                )

    def _open(self) -> Bins:
        settings = {"separator": self.separator, "fraction": self.held_out, "cache": self.cache}
        self._bins = token_bins(self.path, self._tokenizer, **settings)
        return self._bins

    def training_samples(self, start: int, rank: int, world: int) -> TrainingStream:
        """Windows of the training text."""
        place = {"start": start, "rank": rank, "world": world, "batch_size": self.batch_size}
        return TrainingStream(self.bins.train, context=self.context, pack=self.pack, seed=self.seed, **place)

    def held_out_samples(self, shuffled: bool) -> HeldOutSamples:
        """Every held-out token once; in the order of the text, if not shuffled."""
        tokens = self.bins.held_out
        window = partial(held_out_window, tokens, self.context, self.pack)
        return HeldOutSamples(window, -(-(tokens.tokens - 1) // self.context), shuffled)


def _check(*, context: int, batch_size: int, held_out: float, separator: str | None, workers: int) -> None:
    require_counts(context=(context, 1), batch_size=(batch_size, 1), workers=(workers, 0))
    if not 0 < held_out < 1:
        raise DataError(f"data.held_out: {held_out!r}; a fraction between 0 and 1 is needed, such as 0.05")
    if separator == "":
        raise DataError("data.separator: an empty text separates nothing; leave it out to make each file a document")


class TrainingStream(IterableDataset):
    """Batches of windows, of the samples that `sample_numbers` says.

    Pass e over the text visits each window once, in an order drawn from (seed, e), the grid of windows shifted by an
    offset drawn from (seed, e) too.
    """

    def __init__(
        self,
        tokens: TokenBin,
        *,
        context: int,
        pack: bool,
        seed: int,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.bin, self.context, self.pack, self.seed = tokens, context, pack, seed
        self.batch_size, self.start, self.rank, self.world = batch_size, start, rank, world
        self.windows = max(1, (tokens.tokens - context) // context)  # one pass over the text

    def __iter__(self) -> Iterator[Batch]:
        tokens, starts = self.bin.read(), self.bin.starts()
        for samples in sample_numbers(self.start, self.batch_size, self.rank, self.world):
            yield cut_windows(tokens, starts, self.offsets(samples), self.context, self.pack)

    def offsets(self, samples: np.ndarray) -> np.ndarray:
        """(b,) sample numbers -> (b,) offsets of their windows in the bin. A pure function of (seed, sample)."""
        passes, places = samples // self.windows, samples % self.windows
        slack = min(self.context - 1, self.bin.tokens - 1 - self.windows * self.context)
        keys = [mix(self.seed, epoch) for epoch in passes.tolist()]
        permuted = [permute(place, self.windows, key) for place, key in zip(places.tolist(), keys, strict=True)]
        shifts = [mix(key, -1) % (slack + 1) for key in keys]
        return np.asarray(permuted) * self.context + np.asarray(shifts)


def held_out_window(tokens: TokenBin, context: int, pack: bool, place: int) -> Batch:
    """Window `place` of those that lie end to end: each token but the first of its document is a target exactly once;
    the last window is padded."""
    batch = cut_windows(tokens.read(), tokens.starts(), np.asarray([place * context]), context, pack)
    return {name: tensor[0] for name, tensor in batch.items()}


def cut_windows(tokens: np.ndarray, starts: np.ndarray, offsets: np.ndarray, context: int, pack: bool) -> Batch:
    """(b,) offsets -> ids, targets and, when packed, segment_ids, each (b, context) int64.

    Places behind the last token repeat it and are no targets. Segment ids count a window's documents from 0.
    """
    places = offsets[:, None] + np.arange(context + 1)
    inside = np.minimum(places, len(tokens) - 1)
    window = torch.from_numpy(tokens[inside].astype(np.int64))
    document = torch.from_numpy(np.searchsorted(starts, inside, side="right"))
    crossing = (document[:, 1:] != document[:, :-1]) | torch.from_numpy(places[:, 1:] >= len(tokens))
    batch = {"ids": window[:, :-1].contiguous(), "targets": window[:, 1:].masked_fill(crossing, IGNORED)}
    if pack:
        batch["segment_ids"] = (document - document[:, :1])[:, :-1].contiguous()
    return batch
