"""Whole models decode by our kernels, in Triton's interpreter, as they do in plain PyTorch; states keep their laws."""

import pytest
import torch

import hybridlm as hl
from hybridlm.ops.backend import trace, use
from hybridlm.state import leaves

KERNELS = {"ssd", "selective_scan", "causal_conv1d", "cached_attention", "write_slots", "linear", "rms_norm"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    mixers = {"M": {"type": "mamba2", "d_state": 16}, "m": {"type": "mamba", "d_state": 4}, "A": {"type": "attention"}}
    mixers["W"] = {"type": "sliding_window", "window": 6}
    blocks = {letter: {"mixer": mixer} for letter, mixer in mixers.items()}
    return hl.build(pattern="MmAW", d_model=16, vocab_size=10, mlp="none", blocks=blocks)


@torch.no_grad()
def decoded(model, state, ids, backend):
    logits = []
    with use(backend):
        for one in ids.split(1, dim=1):
            out = model(one, state=state)
            logits, state = [*logits, out.logits], out.state
    return torch.cat(logits, dim=1), state


def tensors(state):
    """{(layer, name): tensor} of a model's state."""
    return {(i, n): t for i, leaf in enumerate(leaves(state.layers)) for n, t in leaf.tensors().items()}


@torch.no_grad()
def read(model, ids):
    return model(ids, state=model.init_state(len(ids), 32)).state


def test_a_model_decodes_as_in_plain_pytorch(model):
    ids = torch.randint(10, (2, 9))
    state = read(model, ids)
    with trace() as seen:
        got, ours = decoded(model, state.fork(), ids[:, :1], "triton")
    want, theirs = decoded(model, state, ids[:, :1], "reference")
    assert {one.op for one in seen if one.backend == "triton"} >= KERNELS
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for key, tensor in tensors(ours).items():
        torch.testing.assert_close(tensor, tensors(theirs)[key], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_fork_is_not_written_and_memory_is_handed_on(model):
    ids = torch.randint(10, (2, 5))
    state = read(model, ids)
    twin = state.fork()
    before = {key: tensor.clone() for key, tensor in tensors(twin).items()}
    places = [tensor.data_ptr() for tensor in tensors(state).values()]
    with use("triton"):
        state = model(ids[:, :1], state=state).state
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(twin).items())
    assert places == [tensor.data_ptr() for tensor in tensors(state).values()]


@torch.no_grad()
def test_a_row_that_has_stopped_stays_where_it_is(model):
    ids = torch.randint(10, (2, 5))
    state, valid = read(model, ids), torch.tensor([[True], [False]])
    before = {key: tensor[1].clone() for key, tensor in tensors(state).items()}
    with use("triton"), trace() as seen:
        state = model(ids[:, :1], state=state, valid=valid).state
    assert {one.op for one in seen if one.backend == "triton"} >= KERNELS - {"cached_attention"}
    for key, tensor in tensors(state).items():
        assert torch.equal(tensor[1], before[key]), key
