"""What only a whole model has: ids, generation, a spec, a folder on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.compose.build import build, load, save
from hybridlm.compose.cost import model_cost
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
    twin = s.twin(torch.float64, "reference")
    lengths = [s.tokens - 6, 5, 1, 3][: s.rows]
    steps = torch.arange(max(lengths))
    mask = steps >= max(lengths) - torch.tensor(lengths)[:, None]
    ids = torch.randint(s.spec.vocab_size, mask.shape, generator=torch.Generator().manual_seed(21))
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
    ids = torch.randint(s.spec.vocab_size, (4, 64), generator=torch.Generator().manual_seed(22))
    loud = direct.eval()(ids).logits.square().mean().sqrt().item()
    yield holds("RMS of the logits", 1e-3 <= loud <= 10, f"{loud:.1e}; it should lie in 1e-3 .. 10")


@law("C18", "weights and state, saved and loaded, are the same bits", of=Whole)
def reload(s: Whole) -> Iterator[Result]:
    ids = torch.randint(s.spec.vocab_size, (s.rows, 12), generator=torch.Generator().manual_seed(23))
    state = s.read(ids[:, :8], s.init_state(s.rows))[1]
    other = s.twin()
    with tempfile.TemporaryDirectory() as folder:
        save(s.module, folder)
        state.save(f"{folder}/state")
        other.module, loaded = load(folder).eval(), load_state(f"{folder}/state")
    for name, tensor in s.module.state_dict().items():
        yield same(f"weight {name}", other.module.state_dict()[name], tensor)
    for name, tensor in memory(state).items():
        yield same(f"state {name}", memory(loaded)[name], tensor)
    yield same("going on", other.read(ids[:, 8:], loaded)[0], s.read(ids[:, 8:], state)[0])


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
        state = plain.read(torch.zeros(1, past, dtype=torch.int64), s.init_state(1))[1] if past else None
        with FlopCounterMode(display=False) as counter:
            plain.read(torch.zeros(1, tokens, dtype=torch.int64), state)
        said, counted = cost.forward(tokens, past).matmul, counter.get_total_flops()
        off = abs(said - counted) / counted
        detail = "" if off <= 0.02 else f"cost says {said:g}, counted {counted}"
        yield Result("", f"FLOPs of {tokens} after {past}", off, off, 0.02, "failed" if detail else "passed", detail)
