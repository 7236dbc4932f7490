"""What only a whole model has: ids, generation, a spec, a folder on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.compose.build import build, load, save
from hybridlm.compose.cost import model_cost
from hybridlm.ops.backend import use
from hybridlm.state import load_state
from hybridlm.testing.laws.law import law
from hybridlm.testing.result import Result, holds, measured, same
from hybridlm.testing.subject import memory
from hybridlm.testing.whole import Whole

TIE = 1e-5
"""Greedy decoding must choose as float64 does where that sees a larger gap between the two best logits."""


@law("C2", "any split of the sequence gives the whole: outputs, and state after each piece", of=Whole)
def generation(s: Whole) -> Iterator[Result]:
    """Ragged prompts of random ids, then greedy decoding from the state: every logit as if read anew in float64."""
    if not s.spec.is_language_model:
        return
    twin = s.twin(torch.float64, "reference")
    lengths = [s.tokens - 6, 5, 1, 3][: s.rows]
    steps = torch.arange(max(lengths))
    mask = steps >= max(lengths) - torch.tensor(lengths)[:, None]
    ids = s.inputs(*mask.shape, seed=21)
    texts = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    logits, state = s.read(ids, s.init_state(len(texts)), mask)
    for step in range(6):
        want = torch.cat([twin.read(torch.tensor([text]))[0][:, -1] for text in texts])
        yield measured(f"generation, token {step + 1}", logits[:, -1], want, s.limit if s.exact else 4 * s.coarse)
        if s.exact:
            yield chosen_alike(f"generation, choice {step + 1}", logits[:, -1], want)
        best = logits[:, -1].argmax(dim=-1)
        texts = [[*text, token] for text, token in zip(texts, best.tolist(), strict=True)]
        logits, state = s.read(best[:, None], state)


@law("C2", "any split of the sequence gives the whole: outputs, and state after each piece", of=Whole)
def real_inputs(s: Whole) -> Iterator[Result]:
    """Ragged rows of ids or signals, padded on the left with anything, in two pieces: as each row alone in float64."""
    twin, t = s.twin(torch.float64, "reference"), s.tokens
    lengths = [t, t - 7, 3, 1][: s.rows]
    mask = torch.arange(t) >= t - torch.tensor(lengths)[:, None]
    inputs = s.inputs(len(lengths), t, seed=21)
    anything = inputs.masked_fill(~mask[..., None], torch.nan) if inputs.is_floating_point() else inputs
    first, state = s.read(anything[:, : t - 2], s.init_state(len(lengths)), mask[:, : t - 2])
    last, _ = s.read(anything[:, t - 2 :], state, mask[:, t - 2 :])
    got = torch.cat([first, last], dim=1)
    for row, n in enumerate(lengths):
        alone = inputs[row : row + 1, t - n :]
        want = twin.read(alone.double() if alone.is_floating_point() else alone)[0]
        yield measured(f"answers of {n} steps", got[row, t - n :], want[0], s.limit if s.exact else 4 * s.coarse)


def chosen_alike(case: str, got: Tensor, want: Tensor) -> Result:
    """The same best token in every row, ties apart."""
    first, second = want.topk(2, dim=-1).values.unbind(-1)
    alike = (got.argmax(-1) == want.argmax(-1)) | (first - second <= TIE)
    return holds(case, bool(alike.all()), "greedy decoding goes another way")


@law("C17", "first values: the same on every way to them, and of the size they should be", of=Whole)
def first_values(s: Whole) -> Iterator[Result]:
    direct, later = build(s.spec), build(s.spec, device="meta").to_empty(device="cpu")
    for tensor in later.state_dict().values():
        tensor.fill_(torch.nan)
    for model in (direct, later):
        model.init_weights(7)
    for name, tensor in direct.state_dict().items():
        yield same(f"meta -> to_empty -> init_weights: {name}", later.state_dict()[name], tensor)
    loud = direct.eval()(s.inputs(4, 64, seed=22)).logits.square().mean().sqrt().item()
    yield holds("RMS of the logits", 1e-3 <= loud <= 10, f"{loud:.1e}; it should lie in 1e-3 .. 10")


@law("C18", "weights and state, saved and loaded, are the same bits", of=Whole)
def reload(s: Whole) -> Iterator[Result]:
    inputs = s.inputs(s.rows, 12, seed=23)
    state = s.read(inputs[:, :8], s.init_state(s.rows))[1]
    other = s.twin()
    with tempfile.TemporaryDirectory() as folder:
        save(s.module, folder)
        state.save(f"{folder}/state")
        other.module, loaded = load(folder).eval(), load_state(f"{folder}/state")
    for name, tensor in s.module.state_dict().items():
        yield same(f"weight {name}", other.module.state_dict()[name], tensor)
    for name, tensor in memory(state).items():
        yield same(f"state {name}", memory(loaded)[name], tensor)
    yield same("going on", other.read(inputs[:, 8:], loaded)[0], s.read(inputs[:, 8:], state)[0])


@law("C24", "cost() says what is: parameters, bytes of state, FLOPs of matrix products", of=Whole)
def accounting(s: Whole) -> Iterator[Result]:
    cost, model = model_cost(s.spec), s.module
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield holds("parameters", cost.parameters == parameters, f"cost says {cost.parameters}, there are {parameters}")
    for dtype in (torch.float32, torch.bfloat16):
        said, held = cost.state(50, dtype, 3).total, model.init_state(3, 50, dtype=dtype, device="meta").nbytes
        yield holds(f"bytes of state, {dtype}", said == held, f"cost says {said}, there are {held}")
    plain = s.twin(backend="reference")
    for tokens, past in ((17, 0), (1, 9), (5, 9)):
        if past and s.spec.output.pool == "mean":
            continue  # refused: a state does not keep the sum
        state = plain.read(s.blank(1, past), s.init_state(1))[1] if past else None
        with FlopCounterMode(display=False) as counter, use("reference"):
            plain.module(s.blank(1, tokens), state)
        said, counted = cost.forward(tokens, past).matmul, counter.get_total_flops()
        off = abs(said - counted) / counted
        detail = "" if off <= 0.02 else f"cost says {said:g}, counted {counted}"
        yield Result("", f"FLOPs of {tokens} after {past}", off, off, 0.02, "failed" if detail else "passed", detail)
