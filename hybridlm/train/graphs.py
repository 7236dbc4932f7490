"""A whole training step: forward, backward, clipping, optimiser; on a GPU, if wished, as one CUDA graph.

No Lightning here: `hybridlm fit`, benchmarks and programs with a loop of their own use the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hybridlm.compose.model import HybridLM, Output
from hybridlm.errors import SpecError

Batch = dict[str, Tensor]
NOT_FINITE = "the loss or its gradient is no number; the optimiser step was not taken"
WARM_UP = 3  # steps before the capture: compiling, tuning, and the optimiser's first state


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is no number. The optimiser step was not taken.

    batch: what the step read, where the step knows. ago: how many steps have been asked for since.
    """

    def __init__(self, message: str, batch: Batch | None = None, ago: int = 0) -> None:
        super().__init__(message)
        self.batch, self.ago = batch, ago


class TrainStep:
    """One optimiser step on a batch: `out = step({"ids": ids, "targets": targets})`.

    model:     a HybridLM in training mode; a batch has its arguments by name, its inputs as ids or inputs.
    optimizer: fused AdamW on a GPU (`hybridlm.train.optim.adamw` gives it).
    clip:      largest norm of the gradient; None: no clipping.
    autocast:  dtype of the forward pass; None: that of the weights.
    graph:     after a few steps capture a whole one in a CUDA graph and replay it from then on, which costs one launch.
               Batches must keep their shapes. A schedule may go on setting param_groups[i]["lr"]: it is a tensor then.

    The outputs are cut off from the graph; a captured step writes those of the next one into the same memory.
    A loss or gradient that is no number leaves weights and optimiser as they were before that step, and so does every
    step after it. NonFiniteError: raised by the step itself on a CPU, by the next step or `check` on a GPU, where
    nothing waits for the device. SpecError: no GPU, an optimiser that is not fused, a batch of another shape.
    """

    def __init__(
        self,
        model: HybridLM,
        optimizer: Optimizer,
        *,
        clip: float | None = None,
        autocast: torch.dtype | None = None,
        graph: bool = False,
    ):
        self.model, self.optimizer, self.clip, self.autocast = model, optimizer, clip, autocast
        self.device = next(model.parameters()).device
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        self.bad = torch.zeros((), device=self.device)  # 1 from the first non-finite step on
        self.steps = 0
        self._watched: list[tuple[Tensor, torch.cuda.Event, Batch]] = []
        self._replay: Callable[[], Output] | None = None
        self._inputs: Batch | None = None
        self.graph = graph
        if graph:
            require_graph(self.device, self.fused)

    def __call__(self, batch: Batch) -> Output:
        if self.graph:
            self._take(batch)
            if self._replay is None and self.steps >= WARM_UP:
                self._replay = self._captured()
            out = self._replay() if self._replay else aside(self.device, lambda: self._run(self._inputs))
        else:
            out = self._run(batch)
        self.steps += 1
        if self.device.type == "cuda":
            self._watch(batch)
        elif self.bad.item():
            raise NonFiniteError(NOT_FINITE, batch)
        return out

    def check(self) -> None:
        """NonFiniteError if a step so far was not finite; waits for the device."""
        while self._watched:
            self._look()
        if self.bad.item():
            raise NonFiniteError(NOT_FINITE)

    def _run(self, batch: Batch) -> Output:
        """The step itself, which waits for nothing."""
        inputs = {"ids": batch["ids"] if "ids" in batch else batch["inputs"]}
        inputs |= {name: tensor for name, tensor in batch.items() if name not in ("ids", "inputs")}
        device, autocast = self.device.type, self.autocast is not None
        with torch.autocast(device, dtype=self.autocast) if autocast else nullcontext():
            out = self.model(**inputs)
        with torch.autocast(device, enabled=False):
            out.loss.backward()
            self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return detached(out)

    def _update(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters])
        self.bad.copy_(torch.maximum(self.bad, (~norm.isfinite()).to(self.bad.dtype)))
        if self.clip is not None:
            clip_grads_with_norm_(parameters, self.clip, norm)
        if self.fused:
            self.optimizer.found_inf = self.bad  # what a GradScaler says to a fused optimiser: 1 skips the step
        elif self.bad.item():
            raise NonFiniteError(NOT_FINITE)
        self.optimizer.step()

    def _watch(self, batch: Batch) -> None:
        """Look at how the step before this one went, which the device knows by now."""
        flag = torch.empty((), pin_memory=True)
        flag.copy_(self.bad, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._watched.append((flag, done, batch))
        if len(self._watched) > 1:
            self._look()

    def _look(self) -> None:
        flag, done, batch = self._watched.pop(0)
        done.synchronize()
        if flag.item():
            raise NonFiniteError(NOT_FINITE, batch, ago=len(self._watched))

    # ------------------------------------------------------------------------------------------------------ the graph
    def _take(self, batch: Batch) -> None:
        """Copy the batch to where the captured step reads it."""
        if self._inputs is None:
            self._inputs = {name: torch.empty_like(tensor, device=self.device) for name, tensor in batch.items()}
        said, held = ({name: (tuple(t.shape), t.dtype) for name, t in of.items()} for of in (batch, self._inputs))
        if said != held:
            raise SpecError(f"a captured step takes batches of one shape: this one is {said}, the first was {held}")
        for name, tensor in batch.items():
            self._inputs[name].copy_(tensor, non_blocking=True)

    def _captured(self) -> Callable[[], Output]:
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.device)
            group["capturable"] = True
        return capture(lambda: self._run(self._inputs))


def require_graph(device: torch.device, fused: bool) -> None:
    """SpecError: what keeps a training step on this device from being captured."""
    if device.type != "cuda":
        raise SpecError(f"a CUDA graph needs a GPU, and the model is on {device}; leave cuda_graph out")
    if not fused:
        raise SpecError("a CUDA graph needs a fused optimiser, which can skip a step by itself: AdamW(..., fused=True)")


def aside(device: torch.device, run: Callable[[], Output]) -> Output:
    """Run on a stream of its own, as what is to be captured must have run before."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        out = run()
    torch.cuda.current_stream(device).wait_stream(stream)
    return out


def capture(run: Callable[[], Output]) -> Callable[[], Output]:
    """A function that does on the device what `run` does now; its result is always in the same memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on loading data
        out = run()

    def replay() -> Output:
        graph.replay()
        return out

    return replay


def detached(out: Output) -> Output:
    """The same tensors without the graph behind them."""
    records = tuple(replace(record, balance=record.balance.detach()) for record in out.router)
    values = {f.name: getattr(out, f.name) for f in fields(out) if f.name not in ("state", "router")}
    return Output(router=records, **_detached(values.items()))


def _detached(values: Iterable[tuple[str, Tensor | None]]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.detach() for name, value in values}


def plain_groups(optimizer_state: dict) -> None:
    """Give an optimiser's state the settings of one that was not captured, so that it can be resumed anywhere."""
    for group in optimizer_state["param_groups"]:
        group["lr"], group["capturable"] = float(group["lr"]), False
