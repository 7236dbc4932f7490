"""Generating: the prompts are read once, then each step reads one token a row from the state and chooses the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import CheckpointError, SpecError, StateError
from hybridlm.infer.prompts import Prompts
from hybridlm.infer.sampling import Draws, Sampler
from hybridlm.state import LayerState, ModelState, leaves, map_layers

GREEDY = Sampler()


def generate(
    model: HybridLM,
    ids: Tensor | Sequence,
    max_new_tokens: int = 64,
    *,
    valid: Tensor | None = None,
    state: ModelState | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: int | Iterable[int] | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor | list[Tensor]:
    """Continue prompts by up to max_new_tokens tokens; greedily unless a temperature is given.

        ids = hl.generate(model, ids, max_new_tokens=64)
        ids = hl.generate(model, [[1, 2, 3], [4]], temperature=0.8, top_p=0.95, stop=0, seed=1)

    ids: (b, t) integers, or a list of prompts of any lengths (lists of ids, or 1-D tensors).
    valid: (b, t) bool, False at the pads of a tensor; they may stand on either side.
    state: continue from it, as if its tokens came before the prompts; it is consumed. To keep one, or to have the state
        at the end, see `Stream`.
    temperature, top_k, top_p, min_p, repetition_penalty: see `Sampler`. The penalty sees prompt and new tokens, not
        what an incoming state has read.
    stop: token ids that end a row; the token itself is kept.
    seed: of the draws. Row i draws with seed + i (or seed[i]), whatever else is in the batch: it gives the tokens that
        its prompt gives alone with seed + i, up to rounding in the logits.

    Returns int64 on the device of ids. For a tensor: (b, t + n), n the most steps a row took; after its stop token a
    row is filled with that token. For a list: a list of 1-D tensors, each ending with its own last token.

    SpecError: no language model, an empty prompt, an id outside the vocabulary, a value out of range. StateError: a
    state that is spent, of another model or batch, or too small. The model's mode (train or eval) is as before; dropout
    is off meanwhile.
    """
    sampler = Sampler(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    stream = Stream(model, ids, max_new_tokens, valid=valid, state=state, sampler=sampler, stop=stop, seed=seed)
    return stream.prompts.followed_by(list(stream), stream.counts.tolist())


class Stream:
    """Generation step by step: an iterator of new tokens, (b,) int64 on the model's device.

        stream = hybridlm.infer.Stream(model, ids, 64, sampler=Sampler(temperature=0.8))
        for tokens in stream: ...
        state = stream.state            # has read the prompts and every new token

    Arguments and errors are those of `generate`, and the errors come at once. counts: (b,) int64, the new tokens of
    each row so far, its stop token included; a row that has stopped repeats its last token.
    """

    def __init__(
        self,
        model: HybridLM,
        ids: Tensor | Sequence,
        max_new_tokens: int = 64,
        *,
        valid: Tensor | None = None,
        state: ModelState | None = None,
        sampler: Sampler = GREEDY,
        stop: int | Iterable[int] | None = None,
        seed: int | Sequence[int] = 0,
    ):
        require_language_model(model.spec)
        vocab_size, device = model.spec.vocab_size, model.embed.weight.device
        self.model, self.sampler = model, sampler
        self._left = whole("max_new_tokens", max_new_tokens, low=0)
        self.prompts = Prompts.read(ids, valid, vocab_size)
        self._stop = _stop_tokens(stop, vocab_size, device)
        self._draws = Draws(seed, len(self.prompts.lengths))
        self._state = _state_for(model, self.prompts.lengths, max_new_tokens, state)
        prompts = self.prompts.to(device)
        self._unread, self._real = prompts.ids, prompts.valid  # what the state is to read next
        self._seen = prompts.seen(vocab_size)
        self._running = torch.ones(len(prompts.ids), dtype=torch.bool, device=device)
        self._tokens = self.counts = torch.zeros(len(prompts.ids), dtype=torch.int64, device=device)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._left == 0 or not self._running.any():
            raise StopIteration
        self._tokens = self._choose(self._read())
        self._unread = self._tokens[:, None]
        self._real = None if self._running.all() else self._running[:, None]
        self._seen.scatter_(1, self._unread, True)
        self.counts = self.counts + self._running
        self._running = self._running & ~torch.isin(self._tokens, self._stop)
        self._left -= 1
        return self._tokens

    def end(self, row: int) -> None:
        """Stop a row, as if its last token had been a stop token."""
        self._running = self._running.index_fill(0, torch.tensor([row], device=self._running.device), False)

    @property
    def state(self) -> ModelState:
        """The state after the prompts and all tokens that came out so far, the last ones included."""
        if self._unread is not None:
            self._read()
        return self._state

    def _read(self) -> Tensor:
        """Let the state read what it has not; the logits (b, v) of each row's last token."""
        if self._unread is None:
            raise StateError("the stream's state was taken; to go on, start a new Stream from it")
        ids, real = self._unread, self._real
        self._unread = None
        with torch.inference_mode(), _evaluating(self.model):
            x, self._state = self.model.hidden(ids, self._state, valid=real)
            return self.model.logits(x[:, -1] if real is None else _last(x, real))

    def _choose(self, logits: Tensor) -> Tensor:
        """The next token of each running row; the others repeat theirs."""
        broken = (logits.isnan() | logits.isposinf()).any(dim=1) & self._running
        if broken.any():
            row = int(broken.nonzero()[0])
            raise CheckpointError(f"prompt {row}: the model's logits are not finite; its weights are damaged")
        tokens = self.sampler(logits, self._seen, self._draws)
        return torch.where(self._running, tokens, self._tokens)


def require_language_model(spec: ModelSpec) -> None:
    """SpecError unless tokens go in and logits of the next one come out."""
    if not spec.is_language_model:
        raise SpecError(
            f"embed: {spec.input.type}, head: {spec.output.type}: this model cannot write, as it does not read tokens "
            "and give logits of the next one (embed: tokens, head: lm); call it with model(ids)"
        )


def enlarge(model: HybridLM, state: ModelState, max_length: int) -> ModelState:
    """A copy of a state with room for documents of max_length tokens; `state` itself stays good.

    StateError: max_length is less than the state's own, or the state is spent or of another model.
    """
    _check_state(model, state, state.batch)
    if max_length < state.max_length:
        raise StateError(f"max_length: {max_length}; the state has {state.max_length} already and cannot shrink")
    sketches = iter(leaves(model.init_state(state.batch, max_length, device="meta").layers))
    with torch.inference_mode(False):
        layers = map_layers(state.layers, lambda leaf: _grown(leaf, next(sketches)))
    return ModelState(layers, state.cursor.fork(), max_length, state.fingerprint)


def _grown(leaf: LayerState, sketch: LayerState) -> LayerState:
    """A position keeps its slot, so the old slots are the first ones of the new; the rest is empty."""
    shapes = {name: tensor.shape for name, tensor in sketch.tensors().items()}
    return type(leaf)(**{name: _in_corner(tensor, shapes[name]) for name, tensor in leaf.tensors().items()})


def _in_corner(tensor: Tensor, shape: torch.Size) -> Tensor:
    larger = tensor.new_zeros(shape)
    larger[tuple(slice(size) for size in tensor.shape)] = tensor
    return larger


def _state_for(model: HybridLM, lengths: list[int], new: int, state: ModelState | None) -> ModelState:
    """The given state if prompts and new tokens fit into it, or an empty one of just the size."""
    if state is None:
        return model.init_state(len(lengths), max(lengths) + new)
    _check_state(model, state, len(lengths))
    needs = [past + length + new for past, length in zip(state.cursor.lengths, lengths, strict=True)]
    if max(needs) > state.max_length:
        row = needs.index(max(needs))
        raise StateError(
            f"the state has room for {state.max_length} tokens a row; row {row} holds {state.cursor.lengths[row]}, its "
            f"prompt has {lengths[row]} and max_new_tokens is {new}, {needs[row]} together. Use fewer, or "
            f"hybridlm.infer.enlarge(model, state, {needs[row]})"
        )
    return state


def _check_state(model: HybridLM, state: ModelState, batch: int) -> None:
    if not isinstance(state, ModelState):
        raise StateError(f"state: a {type(state).__name__}; it must come from model.init_state or an earlier call")
    state.check()
    if state.fingerprint != model.spec.fingerprint:
        raise StateError("the state belongs to another model; give the model that made it, or read the prompt again")
    if state.batch != batch:
        raise StateError(f"the state has {state.batch} rows, and there are {batch} prompts; use state.select(rows)")


def _stop_tokens(stop: int | Iterable[int] | None, vocab_size: int, device: torch.device) -> Tensor:
    listed = [] if stop is None else list(stop) if isinstance(stop, Iterable) else [stop]
    checked = [whole("stop", token, 0, vocab_size - 1) for token in listed]
    return torch.tensor(checked, dtype=torch.int64, device=device)


def _last(x: Tensor, real: Tensor) -> Tensor:
    """x (b, t, d) at each row's last real token; the last column in a row that has none. real (b, t) bool."""
    steps = torch.arange(x.shape[1], device=x.device)
    last = torch.where(real, steps, -1).amax(dim=1) % x.shape[1]
    return x[torch.arange(x.shape[0], device=x.device), last]


@contextmanager
def _evaluating(model: HybridLM) -> Iterator[None]:
    """Dropout is off within; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
