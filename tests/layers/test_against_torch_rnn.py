"""lstm and gru against torch.nn.LSTM and torch.nn.GRU: their weights, full rows, single tokens, packed sequences.

Every parameter is random, biases too. The worst token seen was 5e-7 off, the limit is 1e-5.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hybridlm.context import Context, Cursor
from hybridlm.layers.gru import GRU, GRUConfig
from hybridlm.layers.lstm import LSTM, LSTMConfig
from tests.layers.common import exchanged

LIMIT = 1e-5
D_MODEL, HIDDEN, STEPS = 12, 7, 4
LENGTHS = [20, 3, 11]
CASES = {
    "lstm": (lambda: LSTM(LSTMConfig(hidden=HIDDEN), D_MODEL), nn.LSTM),
    "gru": (lambda: GRU(GRUConfig(hidden=HIDDEN), D_MODEL), nn.GRU),
}
NAMES = [(case, name) for case, (ours, _) in CASES.items() for name, _ in ours().named_parameters()]


def make_pair(case):
    """(theirs, its output projection), ours with the same parameters, x."""
    ours, theirs = CASES[case]
    ours, theirs, out = ours(), theirs(D_MODEL, HIDDEN, batch_first=True), nn.Linear(HIDDEN, D_MODEL, bias=False)
    with torch.no_grad():
        for parameter in (*theirs.parameters(), out.weight):
            parameter.copy_(torch.randn(parameter.shape) * (1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    weights = {name.removesuffix("_l0"): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(weights | {"out_proj.weight": out.weight}, strict=True)
    return (theirs, out), ours, torch.randn(3, 20, D_MODEL)


@torch.no_grad()
def play_theirs(theirs, x):
    """One call; a prefill and single tokens; packed sequences, with zeros at pads. And the last states."""
    cell, out = theirs
    whole, _ = cell(x)
    state, pieces = None, []
    for part in x.split([x.shape[1] - STEPS, *[1] * STEPS], dim=1):
        y, state = cell(part, state)
        pieces.append(y)
    packed, end = cell(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    ragged, _ = pad_packed_sequence(packed, batch_first=True)
    states = [v[0] for held in (state, end) for v in (held if isinstance(held, tuple) else (held,))]
    return [out(whole), out(torch.cat(pieces, dim=1)), out(ragged)], states


@torch.no_grad()
def play_ours(mixer, x):
    """The same with our state; the pads hold NaN."""
    state, pieces = mixer.init_state(3, x.shape[1]), []
    for part in x.split([x.shape[1] - STEPS, *[1] * STEPS], dim=1):
        y, state = mixer(part, state)
        pieces.append(y)
    valid = torch.arange(x.shape[1]) < torch.tensor(LENGTHS)[:, None]
    held = mixer.init_state(3, x.shape[1])
    ctx = Cursor.zeros(3).open(x, valid)
    ragged, end = mixer(torch.where(valid[..., None], x, torch.nan), held, ctx)
    ragged = torch.where(valid[..., None], ragged, 0)
    alone = mixer(x, None, Context.of(x))[0]
    return [alone, torch.cat(pieces, dim=1), ragged], [*state.tensors().values(), *end.tensors().values()]


def error(ours, theirs):
    """The worst token of the outputs, and the worst row of the states: RMS(err) / RMS(ref)."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max((a - b).square().mean(-1).sqrt().max().item() / b.square().mean().sqrt().item() for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_steps_and_states(case):
    theirs, ours, x = make_pair(case)
    assert error(play_ours(ours, x), play_theirs(theirs, x)) < LIMIT


@pytest.mark.parametrize("case", CASES)
def test_same_gradients(case):
    (cell, out), ours, x = make_pair(case)
    ours(x)[0].square().sum().backward()
    out(cell(x)[0]).square().sum().backward()
    theirs = {name.removesuffix("_l0"): p.grad for name, p in cell.named_parameters()} | {
        "out_proj.weight": out.weight.grad
    }
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - theirs[name]).norm() < LIMIT * theirs[name].norm()


@pytest.mark.parametrize(("case", "name"), NAMES)
def test_exchanged_entries_are_seen(case, name):
    theirs, ours, x = make_pair(case)
    wrong = exchanged(ours, name)
    assert error(play_ours(wrong, x), play_theirs(theirs, x)) > 100 * LIMIT
