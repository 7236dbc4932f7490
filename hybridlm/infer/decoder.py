"""Decoding: a batch reads its prompts, then every step reads each row's last token and chooses the next."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.compose.model import HybridLM
from hybridlm.errors import CheckpointError, StateError, UnsupportedError
from hybridlm.infer import graphs
from hybridlm.infer.modes import evaluating, uncached_casts
from hybridlm.infer.rig import BLOCK, Rig, again, require_same_memory
from hybridlm.infer.sampling import Draws, Sampler
from hybridlm.state import ModelState

GREEDY = Sampler()
LOOK = 16  # steps of a replayed graph between two looks at what the device found
PROMPT = 8192  # tokens of a batch of prompts up to which launches cost more than the work, so that recording it pays


class Decoder:
    """A batch of rows that go on from a state, one token a row and step.

        decoder = hybridlm.infer.Decoder(model, model.init_state(2, 4096))
        decoder.read(ids)                   # (b, t) -> (b,), the first new token of each row
        tokens = decoder.decode(64)         # (b, 64), the next ones; decoder.step() gives one
        state = decoder.state               # has read all of it

    state: where the rows stand; it is consumed, and what comes must fit into it.
    sampler, stop, seed: see `generate`.
    cuda_graph: each step is recorded once and then replayed, with reading, choosing and writing inside, and the host
        waits for nothing: None where that can be done, False never, True refuses where it cannot. Replayed steps must
        fit as others do, and give the same tokens; a forward hook would not be called.

    CheckpointError: logits are not finite. On a replayed graph it comes some steps late, but before `decode`, `check`
    or `state` give anything back.
    """

    def __init__(
        self,
        model: HybridLM,
        state: ModelState,
        *,
        sampler: Sampler = GREEDY,
        seed: int | Sequence[int] = 0,
        stop: int | Iterable[int] | None = None,
        cuda_graph: bool | None = None,
    ):
        self.model, self.sampler = model, sampler
        Draws(seed, state.batch)  # a wrong seed is told before the state is consumed
        mark = graphs.wanted(model, cuda_graph, graphs.WORTH)
        self._strict, self._recording = cuda_graph is True, mark is not None
        self._stops = stops = stop_tokens(stop, model.spec.vocab_size)
        self._over = False
        if self._recording:
            self._rig = graphs.borrow(model, mark, state, sampler, stops)
            self._returns = weakref.finalize(self, graphs.keep, model, self._rig)
            self._returns.atexit = False
        else:
            self._rig = Rig.of(state, model.spec.vocab_size, sampler, len(stops))
        self._begin(seed)

    # ------------------------------------------------------------------------------------------------- what it is asked
    def read(self, ids: Tensor, valid: Tensor | None = None, *, choosing: bool = True) -> Tensor:
        """Read a prompt in every row, after what was there: ids (b, t), valid (b, t) bool or None -> the tokens that
        come next, (b,) int64, unless none are to be chosen."""
        self._require_going_on()
        self._absorb()
        self._renew()
        self._notice(ids, valid)
        if not choosing:
            self._advance(ids, valid, choosing=False)
            return self.last
        self._make_room()
        if self._recording and self._worth_recording(ids):
            self._read_recorded(ids, valid)
        else:
            self._advance(ids, valid)
        self._chosen()
        return self.last

    def restart(self, seed: int | Sequence[int] = 0) -> None:
        """Forget everything, to read other prompts from nothing in the same memory and with the same recordings."""
        self._require_going_on()
        self._rig.state = graphs.emptied(self._rig.state)
        self._begin(seed)

    def step(self) -> Tensor:
        """Read every row's last token and choose the next: (b,) int64. A row that has stopped repeats its last."""
        self._renew()
        self._go_on()
        return self.last

    def decode(self, count: int) -> Tensor:
        """The next tokens, (b, n) int64, as fast as they come: n is count, or less where all rows have stopped."""
        parts, before = [], self.counts
        while count and not self.done:
            start = 0 if self._slot == BLOCK else self._slot
            steps = min(count, BLOCK - start, self._patience())
            self._renew()
            for _ in range(steps):
                self._go_on()
            parts.append(self._rig.tokens[:, start : start + steps].clone())
            count -= steps
        self.check()
        tokens = torch.cat(parts, dim=1) if parts else self._rig.tokens[:, :0].clone()
        return tokens[:, : int((self.counts - before).amax())] if self._stopping else tokens

    def end(self, row: int) -> None:
        """Stop a row, as if its last token had been a stop token."""
        if not self._stopping:
            self._rig.counts.fill_(self._steps)
            self._rig.fresh.fill_(self._unread)
            self._stopping = True
        self._rig.running[row] = False

    def check(self) -> None:
        """CheckpointError if the logits of a row were not finite."""
        self._require(self._rig.sound)

    @property
    def last(self) -> Tensor:
        """(b,) int64: the last token of each row."""
        return self._rig.last[:, 0].clone()

    @property
    def counts(self) -> Tensor:
        """(b,) int64: how many tokens each row has chosen, its stop token included."""
        return self._rig.counts.clone() if self._stopping else torch.full_like(self._rig.counts, self._steps)

    @property
    def done(self) -> bool:
        """Whether every row has stopped. Asks the device where rows may stop."""
        return self._stopping and not bool(self._rig.running.any())

    @property
    def state(self) -> ModelState:
        """The state, which has read all tokens so far; nothing can be decoded after it was taken."""
        if not self._over:
            self._absorb()
            self.check()
            self._over = True
            if self._recording:
                self._returns.detach()
                self._rig.forget()
        return self._rig.state

    # --------------------------------------------------------------------------------------------------------- one step
    def _begin(self, seed: int | Sequence[int]) -> None:
        """Everything but the state as for a new text."""
        self._draws = Draws(seed, self._rig.state.batch)
        self._stopping = bool(self._stops)  # whether rows may stop before the others
        self._steps, self._slot, self._longest, self._unread = 0, BLOCK, None, False
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._rig.clear(self._stops)

    def _require_going_on(self) -> None:
        if self._over:
            raise StateError("nothing can be decoded: the state was taken; start a new Stream or Decoder from it")

    def _go_on(self) -> None:
        self._require_going_on()
        if not self._unread:
            raise StateError("nothing can be decoded: it has read nothing yet")
        self._make_room()
        rig = self._rig
        if self._recording:
            valid = rig.fresh if self._stopping else None
            self._replay((1, self._stopping), rig.last, valid, known=self._require_space())
        else:
            self._advance(rig.last, None if not self._stopping or rig.fresh.all() else rig.fresh)
        self._chosen()

    def _advance(self, ids: Tensor, valid: Tensor | None, choosing: bool = True) -> None:
        """Read and choose, launched one by one."""
        rig = self._rig
        with torch.inference_mode(), evaluating(self.model):
            x, rig.state = self.model.hidden(ids, rig.state, valid=valid)
            if choosing:
                self._choose(self.model.logits(_last(x, valid)))

    def _replay(
        self, key: tuple, ids: Tensor, valid: Tensor | None, known: list[int] | None, fresh: bool = False
    ) -> None:
        """The same from a recording. known: where the rows stand after it, if the host can tell."""
        rig, model = self._rig, self.model

        def step() -> None:
            with torch.inference_mode(), evaluating(model), uncached_casts():
                x, after = model.hidden(ids, again(rig.state), valid=valid)
                require_same_memory(rig.state, after)
                self._choose(model.logits(_last(x, valid)))

        try:
            rig.run(key, step, fresh=fresh)
            rig.state.cursor.known = known
        except UnsupportedError as error:
            if self._strict:
                raise
            graphs.warn_of(error)
            self._recording = False
            self._returns.detach()
            self._advance(ids, valid)

    def _renew(self) -> None:
        """Record anew if the model is not what it was; hooks that came are called, so then nothing is recorded."""
        if self._recording and self._rig.mark is not (mark := graphs.mark_of(self.model)):
            self._rig.forget()
            self._rig.mark, self._recording = mark, not mark.hooked

    def _choose(self, logits: Tensor) -> None:
        """From logits (b, v) to tokens, all of it on the device and in the rig."""
        rig = self._rig
        uniform = None if rig.uniform is None else rig.uniform.index_select(0, rig.slot)[0]
        chosen = self.sampler.choose(logits, None if rig.seen is None else rig.seen[:, :-1], uniform)
        plain = self.sampler.greedy and rig.seen is None  # then the choice is the highest, NaN included
        best = logits.gather(1, chosen[:, None])[:, 0] if plain else logits.amax(dim=1)
        sound = best.abs() < torch.inf
        if self._stopping:
            sound = sound | ~rig.running
            chosen = torch.where(rig.running, chosen, rig.last[:, 0])
            rig.fresh.copy_(rig.running[:, None])
            rig.counts.add_(rig.running)
            rig.running.logical_and_((chosen[:, None] != rig.stop).all(dim=1))
        rig.sound.logical_and_(sound)
        rig.last.copy_(chosen[:, None])
        rig.tokens.index_copy_(1, rig.slot, rig.last)
        rig.slot.add_(1)
        if rig.seen is not None:
            rig.seen.scatter_(1, rig.last, True)

    # ---------------------------------------------------------------------------------------------------------- prompts
    def _worth_recording(self, ids: Tensor) -> bool:
        """Whether the prompts are short, come first, and have come in about this length before."""
        if ids.numel() > PROMPT or any(self._rig.state.cursor.lengths):
            return False
        length = bucket(ids.shape[1])
        met = length in self._rig.met
        self._rig.met.add(length)
        return met

    def _read_recorded(self, ids: Tensor, valid: Tensor | None) -> None:
        """Prompts on the right of which are pads, so that one recording serves many lengths."""
        cursor, (b, t) = self._rig.state.cursor, ids.shape
        cursor.count(t, self._rig.state.max_length)
        padded = valid is not None or t != bucket(t)
        into, real = self._rig.prompt(bucket(t), padded)
        into[:, :t].copy_(ids)
        if padded:
            real.zero_()
            real[:, :t].copy_(torch.ones_like(ids, dtype=torch.bool) if valid is None else valid)
        known = [t] * b if valid is None else valid.sum(dim=1).tolist()
        self._replay((bucket(t), padded, self._stopping), into, real, known, fresh=True)

    def _absorb(self) -> None:
        """Let the state read the last tokens, if it has not."""
        if self._unread:
            fresh = self._rig.fresh
            self._advance(self._rig.last, None if not self._stopping or fresh.all() else fresh.clone(), choosing=False)
            self._unread = False

    def _notice(self, ids: Tensor, valid: Tensor | None) -> None:
        """Tokens of a prompt count as seen; its pads do not."""
        if (seen := self._rig.seen) is not None:
            seen.scatter_(1, ids if valid is None else ids.masked_fill(~valid, seen.shape[1] - 1), True)

    # --------------------------------------------------------------------------------------------------------- the host
    def _make_room(self) -> None:
        """A free column for the next token and a number to draw it with, for BLOCK steps at a time."""
        if self._slot == BLOCK:
            self._slot = 0
            self._rig.slot.zero_()
            if (uniform := self._rig.uniform) is not None:
                drawn = self._draws.steps(BLOCK)
                uniform.copy_(drawn.pin_memory() if uniform.is_cuda else drawn, non_blocking=True)

    def _chosen(self) -> None:
        """The host's part after a step."""
        self._slot, self._steps, self._unread = self._slot + 1, self._steps + 1, True
        if not self._recording:
            self.check()
        elif self._steps % LOOK == 0:
            self._glance()

    def _patience(self) -> int:
        """Steps until the host has to know whether rows stopped."""
        return LOOK if self._recording else 1 if self._stopping else BLOCK

    def _glance(self) -> None:
        """Look at what was asked for earlier, if it has come, and ask again; the device goes on meanwhile."""
        if self._asked is not None and (self._asked[1] is None or self._asked[1].query()):
            self._require(self._asked[0])
            self._asked = None
        if self._asked is None:
            sound, event = self._rig.sound, None
            copy = sound.to("cpu", non_blocking=True, copy=True)
            if sound.is_cuda:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(sound.device))
            self._asked = copy, event

    def _require(self, sound: Tensor) -> None:
        if not sound.all():
            row = int(sound.logical_not().nonzero()[0])
            raise CheckpointError(f"prompt {row}: the model's logits are not finite; its weights are damaged")

    def _require_space(self) -> list[int] | None:
        """Where the rows stand after one more token, if the host can tell. StateError: one does not fit."""
        rig, room = self._rig, self._rig.state.max_length
        if not self._stopping:
            return rig.state.cursor.count(1, room)
        self._longest = 1 + (max(rig.state.cursor.lengths) if self._longest is None else self._longest)
        if self._longest > room:  # by this count, which takes every row for running
            self._longest = max(rig.state.cursor.count(rig.fresh[:, 0].long().tolist(), room))
        return None


def stop_tokens(stop: int | Iterable[int] | None, vocab_size: int) -> list[int]:
    """Token ids, checked."""
    listed = [] if stop is None else list(stop) if isinstance(stop, Iterable) else [stop]
    return [whole("stop", token, 0, vocab_size - 1) for token in listed]


def bucket(length: int) -> int:
    """The next power of two, or the one and a half of one: 16, 24, 32, 48, 64, ..."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def _last(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (b, t, d) at each row's last valid token, the last column in a row that has none. valid (b, t) bool."""
    if valid is None or x.shape[1] == 1:
        return x[:, -1]
    steps = torch.arange(x.shape[1], device=x.device)
    last = torch.where(valid, steps, -1).amax(dim=1) % x.shape[1]
    return x[torch.arange(x.shape[0], device=x.device), last]
