"""Generating: the prompts are read once, then each step reads one token a row from the state and chooses the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from hybridlm.checks import whole
from hybridlm.compose.model import HybridLM
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import SpecError, StateError
from hybridlm.infer import graphs
from hybridlm.infer.decoder import GREEDY, Decoder, stop_tokens
from hybridlm.infer.prompts import Prompts
from hybridlm.infer.sampling import Draws, Sampler
from hybridlm.state import LayerState, ModelState, leaves, map_layers


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
    cuda_graph: bool | None = None,
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
    cuda_graph: on a GPU, each step is recorded once and then replayed, which saves the cost of launching its kernels,
        and gives the same tokens. None: where that pays; False: never; True: always, from the first step. A model keeps
        what was recorded for its next call of these sizes, up to a sixteenth of the GPU's memory;
        `hybridlm.infer.release(model)` frees it.

    Returns int64 on the device of ids. For a tensor: (b, t + n), n the most steps a row took; after its stop token a
    row is filled with that token. For a list: a list of 1-D tensors, each ending with its own last token.

    SpecError: no language model, an empty prompt, an id outside the vocabulary, a value out of range, cuda_graph=True
    without a GPU. UnsupportedError: cuda_graph=True and a model with forward hooks, or one that cannot be recorded.
    StateError: a state that is spent, of another model or batch, or too small. CheckpointError: logits that are not
    finite. The model's mode (train or eval) is as before; dropout is off meanwhile.
    """
    sampler = Sampler(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    how = {"sampler": sampler, "stop": stop, "seed": seed, "cuda_graph": cuda_graph}
    stream = Stream(model, ids, max_new_tokens, valid=valid, state=state, **how)
    return stream.prompts.followed_by(list(stream.rest().unbind(dim=1)), stream.counts.tolist())


class Stream:
    """Generation step by step: an iterator of new tokens, (b,) int64 on the model's device.

        stream = hybridlm.infer.Stream(model, ids, 64, sampler=Sampler(temperature=0.8))
        for tokens in stream: ...
        state = stream.state            # has read the prompts and every new token

    Arguments and errors are those of `generate`, and the errors come at once. A row that has stopped repeats its last
    token.
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
        cuda_graph: bool | None = None,
    ):
        require_language_model(model.spec)
        self.model = model
        self._left = whole("max_new_tokens", max_new_tokens, low=0)
        self.prompts = Prompts.read(ids, valid, model.spec.vocab_size)
        stop, lengths = stop_tokens(stop, model.spec.vocab_size), self.prompts.lengths
        Draws(seed, len(lengths))  # a wrong seed is told before a state is consumed
        replays = graphs.wanted(model, cuda_graph, max_new_tokens) is not None
        state = _state_for(model, lengths, max_new_tokens, state, replays)
        how = {"sampler": sampler, "seed": seed, "stop": stop, "cuda_graph": cuda_graph if replays else False}
        self._decoder, self._unread = Decoder(model, state, **how), self.prompts.to(model.embed.weight.device)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._left == 0 or self._decoder.done:
            self._decoder.check()
            raise StopIteration
        self._left -= 1
        return self._decoder.step() if self._unread is None else self._read()

    def rest(self) -> Tensor:
        """All tokens that are still to come, (b, n) int64; quicker than one by one, as nobody sees them sooner."""
        first = [] if self._unread is None or self._left == 0 else [next(self)[:, None]]
        tokens = torch.cat([*first, self._decoder.decode(self._left)], dim=1)
        self._left = 0
        return tokens

    def end(self, row: int) -> None:
        """Stop a row, as if its last token had been a stop token."""
        self._decoder.end(row)

    @property
    def counts(self) -> Tensor:
        """(b,) int64: the new tokens of each row so far, its stop token included."""
        return self._decoder.counts

    @property
    def state(self) -> ModelState:
        """The state after the prompts and all tokens that came out so far, the last ones included."""
        if self._unread is not None:
            self._read(choosing=False)
        return self._decoder.state

    def _read(self, choosing: bool = True) -> Tensor:
        prompts, self._unread = self._unread, None
        return self._decoder.read(prompts.ids, prompts.valid, choosing=choosing)


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


def _state_for(model: HybridLM, lengths: list[int], new: int, state: ModelState | None, replays: bool) -> ModelState:
    """The given state if prompts and new tokens fit into it, or an empty one: of just the size, or one for replays."""
    if state is None:
        size = len(lengths), max(lengths) + new
        return graphs.empty_state(model, *size) if replays else model.init_state(*size)
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
