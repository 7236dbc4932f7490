"""What is under test, driven as a program drives it, and the truth about it: the same weights in float64, step by step.

Every law is written against `Subject`: `Solo` is one mixer with the door of a model around it, `Whole` a whole model.
The laws share one scene of a few rows. Padding, packing, splitting and selecting only move its tokens about, so that
one slow, simple run of the scene is the reference of them all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from hybridlm.context import Context, Cursor, outside_inference
from hybridlm.errors import SpecError
from hybridlm.layers.init import Streams
from hybridlm.layers.mixer import Mixer
from hybridlm.ops.backend import Seen, known, trace, use
from hybridlm.registry import mixers
from hybridlm.state import ModelState, leaves
from hybridlm.testing.result import EXACT, FLOOR, Result, distance, measured

MARGIN, MARGIN_FEW, FEW, MARGIN_KERNELS = 1.25, 2.0, 2048, 2.0
"""In bf16 and fp16: how much worse than plain eager PyTorch in that dtype; and for a case of few numbers, whose
roundings are too small a sample to tell 1.25 from 1; and for kernels, which round their operands too."""

SMALL = {"window": 6, "head_dim": 8, "heads": 4, "kv_heads": 2, "d_state": 8}
"""Sizes of a Config, where it has such a field, that put every boundary inside a short sequence."""


@dataclass(frozen=True)
class Trace:
    """What came out of a scene, token by token.

    y: (b, t, d). memory: every tensor of the state by name, (t + 1, b, ...): after 0, 1, ... t tokens.
    """

    y: Tensor
    memory: Mapping[str, Tensor]

    def state(self, rows: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The state of the given rows of the scene after so many of their tokens. rows, lengths: (r,)."""
        return {name: tensor[lengths, rows] for name, tensor in self.memory.items()}


Pick = Callable[[Trace], Tensor]

Paper = Callable[[Mixer, Tensor], tuple[Tensor, Mapping[str, Tensor]]]
"""An oracle of one's own: (mixer in float64, x (t, d)) -> y (t, d), and that row's final state, tensors by name."""


class Subject:
    """Something that maps (b, t, d) to (b, t, e) with a ModelState, and a scene to play on it.

    module: the weights. width: d. dtype: of weights, inputs and compute. tokens, rows: size of the scene.
    """

    def __init__(
        self, name: str, module: nn.Module, width: int, dtype: torch.dtype, backend: str, tokens: int, rows: int
    ):
        self.name, self.module, self.width = name, module.to(dtype), width
        self.dtype, self.backend, self.tokens, self.rows = dtype, known(backend), tokens, rows

    def run(
        self, x: Tensor, state: ModelState | None = None, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> tuple[Tensor, ModelState | None]:
        """One call. x (b, t, d); valid (b, t) bool; ids (b, t): documents."""
        raise NotImplementedError

    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        """An empty state; max_length: room for the scene and 8 tokens more."""
        raise NotImplementedError

    def parts(self) -> list[Mixer]:
        """Every mixer inside."""
        return [module for module in self.module.modules() if isinstance(module, Mixer)]

    @property
    def limit(self) -> float:
        """The most error in an exact dtype; of bf16 and fp16, see `allowed`."""
        return EXACT[self.dtype]

    @property
    def exact(self) -> bool:
        """Whether results are held against a fixed limit, not against plain PyTorch in the same dtype."""
        return self.dtype in EXACT

    @property
    def kernels(self) -> bool:
        """Whether it may run on others than plain PyTorch and what that calls on a CPU."""
        return self.backend in ("triton", "vendor") or (self.backend == "auto" and self.device.type != "cpu")

    def ran(self) -> list[Seen]:
        """What every op ran on: rows without a state, with gradients; rows from one, without; one token after them."""
        with trace() as seen:
            with torch.enable_grad():
                self.run(self.scene.detach().clone().requires_grad_())
            with torch.no_grad():
                _, state = self.run(self.scene, self.init_state(self.rows))
                self.run(self.scene[:, :1], state)
        return list(dict.fromkeys(seen))

    @property
    def room(self) -> int:
        """max_length of the states of the scene."""
        return self.tokens + 8

    def twin(self, dtype: torch.dtype | None = None, backend: str | None = None) -> Self:
        """The same weights, already rounded to this dtype, computing in another."""
        twin = copy.copy(self)
        for name in ("scene", "truth", "plain"):
            twin.__dict__.pop(name, None)
        twin.module, twin.dtype = copy.deepcopy(self.module).to(dtype or self.dtype), dtype or self.dtype
        twin.backend = backend or self.backend
        return twin

    def draw(self, b: int, t: int, seed: int) -> Tensor:
        """Inputs (b, t, d), N(0, 1)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(b, t, self.width, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @cached_property
    def scene(self) -> Tensor:
        """(rows, tokens, d)."""
        return self.draw(self.rows, self.tokens, seed=1)

    @cached_property
    def truth(self) -> Trace:
        """The scene in float64 by the reference backend, one row and one token at a time."""
        return step_by_step(self.twin(torch.float64, "reference"), self.scene.double())

    @cached_property
    def plain(self) -> Trace | None:
        """The scene in bf16 or fp16 by the reference backend, one row and one token at a time: plain eager PyTorch."""
        return None if self.exact else step_by_step(self.twin(backend="reference"), self.scene)

    def agrees(self, case: str, got: Tensor, pick: Pick) -> Result:
        """Outputs (..., e) against what pick takes from the truth."""
        want = pick(self.truth)
        return measured(case, got.flatten(0, -2), want.flatten(0, -2), self.allowed(pick))

    def remembers(self, case: str, state: ModelState, rows: Tensor, lengths: Tensor) -> Iterator[Result]:
        """Every tensor of the state against the state of the scene's rows (r,) after lengths (r,) tokens."""
        rows, lengths = rows.to(self.device), lengths.to(self.device)
        wanted = self.truth.state(rows, lengths)
        for name, tensor in memory(state).items():
            if wanted[name].numel():
                limit = self.allowed(lambda trace, name=name: trace.state(rows, lengths)[name])
                error, worst = distance(tensor, wanted[name])
                passed = error <= limit and worst <= 10 * limit
                yield Result("", f"{case}: state {name}", error, worst, limit, "passed" if passed else "failed")

    def allowed(self, pick: Pick) -> float:
        """The limit of a case: a number, or a little more than the error of plain PyTorch on the same tokens."""
        if self.exact:
            return self.limit
        plain, want = pick(self.plain), pick(self.truth)
        margin = MARGIN_KERNELS if self.kernels else MARGIN if want.numel() >= FEW else MARGIN_FEW
        return max(margin * distance(plain.flatten(0, -2), want.flatten(0, -2))[0], EXACT[torch.float32])

    @property
    def coarse(self) -> float:
        """A limit where no plain run exists to compare with: what a few roundings in a row come to."""
        return self.limit if self.exact else 4 * FLOOR[self.dtype]


class Solo(Subject):
    """One mixer, driven as the model drives it: padding is moved aside at the door, the state keeps the clock."""

    def __init__(
        self,
        mixer: str | type[Mixer],
        *,
        config: Any = None,
        d_model: int = 32,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        tokens: int = 70,
        rows: int = 4,
        device: torch.device | str = "cpu",
        paper: Paper | None = None,
    ):
        self.paper = paper
        self.mixer = mixers.get(mixer) if isinstance(mixer, str) else mixer
        self.config = configured(self.mixer, config, d_model)
        name = mixer if isinstance(mixer, str) else mixer.__name__
        super().__init__(name, self.build(d_model).to(device), d_model, dtype, backend, tokens, rows)
        randomise(self.module, seed=2)

    def build(self, d_model: int | None = None) -> Mixer:
        """The mixer at its first values, float32."""
        module = self.mixer(self.config, d_model or self.width)
        module.reset_parameters(Streams(3))
        return module

    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        max_length = self.room if max_length is None else max_length
        with outside_inference():  # as a model does
            layer = self.module.init_state(batch, max_length, device=self.device, dtype=self.dtype)
            return ModelState([layer], Cursor.zeros(batch, device=self.device), max_length)

    def run(
        self, x: Tensor, state: ModelState | None = None, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> tuple[Tensor, ModelState | None]:
        with use(self.backend):
            if state is None:
                ctx = Context.of(x, valid, ids)
                y, after = self.module(ctx.align(x), None, ctx)
                assert after is None, "a call without a state returned one"
                return ctx.restore(y), None
            state.check()
            layer = state.layers[0]
            ctx = state.open(x, valid, ids)
            y, layer = self.module(ctx.align(x), layer, ctx)
            return ctx.restore(y), state.next([layer])


def configured(mixer: type[Mixer], config: Any, d_model: int) -> Any:
    """A resolved Config from an instance, a mapping of its fields, or None (small sizes)."""
    if config is None:
        config = small(mixer, d_model)
    if isinstance(config, Mapping):
        unknown = set(config) - set(mixer.Config.__dataclass_fields__)
        if unknown:
            raise SpecError(f"{mixer.__name__}: no such field of its Config: {', '.join(sorted(unknown))}")
        config = mixer.Config(**config)
    return config.resolve(d_model)


def small(mixer: type[Mixer], d_model: int) -> dict[str, int]:
    """Those of SMALL that its Config has and allows at this width, one after the other; the rest stay as they are."""
    sizes: dict[str, int] = {}
    for name, size in SMALL.items():
        if name in mixer.Config.__dataclass_fields__:
            with suppress(SpecError):
                mixer.Config(**sizes, **{name: size}).resolve(d_model)
                sizes[name] = size
    return sizes


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Move every parameter off its first value, zero biases and unit norms too: a wrong one must show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        values = parameter.detach().double().cpu()
        spread = values.std(correction=0).item() or 1.0
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(values + 0.2 * spread * noise)


@torch.no_grad()
def step_by_step(subject: Subject, scene: Tensor) -> Trace:
    """Play the scene one row and one token at a time."""
    ys, memories = [], []
    for x in scene.unbind():
        state = subject.init_state(1)
        y, kept = [], [snapshot(state)]
        for token in x.unbind():
            out, state = subject.run(token[None, None], state)
            y.append(out[0, 0])
            kept.append(snapshot(state))
        ys.append(torch.stack(y))
        memories.append(kept)
    names = memories[0][0]
    held = {name: torch.stack([torch.cat([kept[name] for kept in row]) for row in memories], 1) for name in names}
    return Trace(torch.stack(ys), held)


def memory(state: ModelState) -> dict[str, Tensor]:
    """Every tensor of a state by name."""
    layers = enumerate(leaves(state.layers))
    return {f"{i}.{leaf.kind}.{name}": tensor for i, leaf in layers for name, tensor in leaf.tensors().items()}


def snapshot(state: ModelState) -> dict[str, Tensor]:
    """A copy of `memory`."""
    return {name: tensor.detach().clone() for name, tensor in memory(state).items()}


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's deterministic mode, in which fresh memory is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
