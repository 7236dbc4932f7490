"""Recorded steps against launched ones, a tape in place of a CUDA graph: tokens, states, stops, capacity, errors."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridlm as hl
from hybridlm.errors import CheckpointError, StateError
from hybridlm.infer import Decoder, Sampler, Stream, decoder, enlarge
from hybridlm.infer.sampling import Draws
from hybridlm.registry import mixers
from hybridlm.state import leaves
from hybridlm.testing.patterns import specs
from tests.infer.common import V, build, prompts_of, shake

SAMPLERS = [
    Sampler(),
    Sampler(repetition_penalty=1.3),
    Sampler(temperature=1.0),
    Sampler(temperature=0.8, top_k=5),
    Sampler(temperature=1.5, top_p=0.9),
    Sampler(temperature=1.2, min_p=0.05, repetition_penalty=0.8),
    Sampler(temperature=2.0, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1),
]

pytestmark = pytest.mark.usefixtures("log")


def both(model, prompts, new, **how):
    """Tokens and state of a stream that launches its steps, and of one that replays them."""
    streams = [Stream(model, prompts, new, cuda_graph=graph, **how) for graph in (False, True)]
    return [(stream.rest(), stream.counts, stream.state) for stream in streams]


def assert_same(launched, replayed):
    assert torch.equal(launched[0], replayed[0])
    assert torch.equal(launched[1], replayed[1])
    assert_same_state(launched[2], replayed[2])


def assert_same_state(expected, found):
    assert torch.equal(found.position, expected.position)
    assert found.cursor.lengths == expected.cursor.lengths
    for old, new in zip(leaves(expected.layers), leaves(found.layers), strict=True):
        for name, tensor in old.tensors().items():
            shape = tuple(slice(size) for size in tensor.shape)
            torch.testing.assert_close(new.tensors()[name][shape], tensor, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def by_hand(model, prompt, new, sampler, seed, stop=()):
    """One row, one token at a time: what a sampler makes of the logits of all tokens before it."""
    text, draws = prompt, Draws(seed, 1)
    for _ in range(new):
        seen = torch.zeros(1, V, dtype=torch.bool)
        seen[0, text] = True
        text = torch.cat([text, sampler(model(text[None]).logits[:, -1], seen, draws)])
        if text[-1] in stop:
            break
    return text[len(prompt) :]


# ------------------------------------------------------------------------------------------------ replayed and launched
@settings(max_examples=15)
@given(specs(), st.data())
def test_random_models(spec, data):
    """Any pattern, ragged prompts, any sampler, with and without stops: tokens, counts and every state tensor."""
    model = hl.build(seed=1, dtype=torch.float64, **spec)
    shake(model)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    stop = data.draw(st.sampled_from([None, [1, 5, 9, 13, 17, 21]]))
    prompts = [ids % 40 for ids in prompts_of(lengths)]
    assert_same(*both(model, prompts, 12, sampler=data.draw(st.sampled_from(SAMPLERS)), stop=stop, seed=5))


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_waits_for_nothing(name, log):
    """The tape refuses what waits. Prompts are recorded from the third call on, padded, and here for a whole length."""
    model = build(f"[{name}] -", blocks={name: {"mixer": {"type": name}}}, mlp="moe")
    for prompts in (prompts_of([5, 5]), prompts_of([16, 16]), prompts_of([3, 11])):
        expected = hl.generate(model, prompts, 6, cuda_graph=False)
        for _ in range(3):
            found = hl.generate(model, prompts, 6, cuda_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert log.count("record") == 3  # a step, padded prompts of up to 16, those of 16
    assert "replay" in log[-6:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_the_same_tokens(sampler):
    """Over more than one block of numbers that are drawn ahead."""
    model, prompts = build("M"), prompts_of([3, 6])
    launched, replayed = both(model, prompts, 70, sampler=sampler, seed=[8, 4])
    assert_same(launched, replayed)
    for row, seed in enumerate([8, 4]):
        assert torch.equal(replayed[0][row], by_hand(model, prompts[row], 70, sampler, seed))


@pytest.mark.parametrize("pattern", ["W{window: 4}", "W{window: 3}M W{window: 9}", "A@twin M A@twin -", "<M|A>S"])
def test_rings_wrap_and_weights_are_shared(pattern):
    assert_same(*both(build(pattern), prompts_of([2, 7]), 30))


@pytest.mark.parametrize("pattern", ["MA", "SW{window: 3}m"])
def test_stopped_rows_stand_still(pattern):
    model, prompts = build(pattern), prompts_of([3, 4, 2])
    sampler = Sampler(temperature=2.0)
    free = Stream(model, prompts, 40, sampler=sampler).rest()
    stop = [int(free[0, 5]), int(free[1, 17])]
    launched, replayed = both(model, prompts, 40, sampler=sampler, stop=stop)
    assert_same(launched, replayed)
    for row, prompt in enumerate(prompts):
        text = torch.cat([prompt, by_hand(model, prompt, 40, sampler, row, stop)])
        assert torch.equal(text[len(prompt) :], replayed[0][row, : replayed[1][row]])
        assert_same_state(model(text[None], state=model.init_state(1, 64)).state, replayed[2].select([row]))
    assert len(set(launched[1].tolist())) > 1, "no row stopped before another"


def test_ending_a_row_midway():
    model, prompts = build("SW{window: 3}m"), prompts_of([3, 4])
    ends = []
    for graph in (False, True):
        stream = Stream(model, prompts, 9, sampler=Sampler(temperature=2.0), cuda_graph=graph)
        steps = []
        for tokens in stream:
            steps.append(tokens)
            if len(steps) == 4:
                stream.end(0)
        ends.append((torch.stack(steps, dim=1), stream.counts, stream.state))
    assert_same(*ends)
    assert ends[1][1].tolist() == [4, 9]


def test_a_stream_gives_what_generate_gives():
    model, prompts = build(), prompts_of([4, 2])
    steps = torch.stack(list(Stream(model, prompts, 20, cuda_graph=True)), dim=1)
    rows = hl.generate(model, prompts, 20, cuda_graph=True)
    assert all(torch.equal(steps[i], rows[i][-20:]) for i in range(2))


def test_a_state_goes_on_launched_or_replayed(tmp_path):
    model, (text, question) = build("W{window: 4}MA"), prompts_of([6, 3])
    first = Stream(model, [text], 20, cuda_graph=True)
    answer = torch.cat([text, first.rest()[0]])
    first.state.save(tmp_path / "state")
    state = enlarge(model, hl.load_state(tmp_path / "state"), 64)
    expected = hl.generate(model, [torch.cat([answer, question])], 20, cuda_graph=False)[0][-20:]
    for graph in (False, True):
        assert torch.equal(hl.generate(model, [question], 20, state=state.fork(), cuda_graph=graph)[0][3:], expected)
    twin = state.fork()
    hl.generate(model, [question], 20, state=state, cuda_graph=True)
    assert_same_state(twin, twin.fork())  # a kept rig does not write into a state that others hold
    with pytest.raises(StateError, match="consumed"):
        Stream(model, [question], 2, state=state, cuda_graph=True)


def test_a_state_that_gradients_made_is_copied():
    model = build("MA")
    state = model(prompts_of([4])[0][None], state=model.init_state(1, 64)).state
    kept = [tensor.clone() for leaf in leaves(state.layers) for tensor in leaf.tensors().values()]
    tensors = [tensor for leaf in leaves(state.layers) for tensor in leaf.tensors().values()]
    hl.generate(model, [[1]], 20, state=state, cuda_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True))


COMPILED = """
import torch
import hybridlm as hl
from hybridlm.infer import Stream, graphs
from tests.infer.tape import TapeRecorder

class Again(TapeRecorder):  # a tape does not hear what a compiled block does
    def record(self, step):
        return step

graphs.recorder_for = Again
model = hl.build(pattern="W{window: 4}M <M|A>", d_model=32, vocab_size=48, seed=1, dtype=torch.float64)
prompts = [[1, 2], [3, 4, 5, 6, 7]]
launched = Stream(model, prompts, 20, cuda_graph=False)
expected = launched.rest()
hl.compile(model, backend="aot_eager")
replayed = Stream(model, prompts, 20, cuda_graph=True)
assert torch.equal(replayed.rest(), expected)
assert torch.equal(replayed.state.position, launched.state.position)
with torch.compiler.set_stance("fail_on_recompile"):
    assert torch.equal(Stream(model, prompts, 20, cuda_graph=True).rest(), expected)
"""


@pytest.mark.deep
def test_compiled_blocks_are_recorded():
    """Once for all steps: no count of the host changes in what is recorded, which would compile again. In a process of
    its own, as torch.compile cannot trace shape checks."""
    environment = {**os.environ, "HYBRIDLM_CHECK_SHAPES": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------------- a Decoder
def test_a_decoder_steps_decodes_and_reads_on():
    model, ids = build("W{window: 4}MA"), torch.stack(prompts_of([5, 5]))
    more = torch.stack(prompts_of([3, 3], seed=9))
    results = []
    for graph in (False, True):
        loop = Decoder(model, model.init_state(2, 64), cuda_graph=graph)
        tokens = [loop.read(ids)[:, None], loop.step()[:, None], loop.decode(7), loop.read(more)[:, None]]
        results.append((torch.cat([*tokens, loop.decode(5)], dim=1), loop.counts, loop.state))
    assert_same(*results)
    text = torch.cat([ids, results[0][0][:, :9], more, results[0][0][:, 9:]], dim=1)
    fresh = model(text, state=model.init_state(2, 64)).state
    assert torch.equal(fresh.position, results[1][2].position)
    assert_same_state(fresh, results[1][2])


@pytest.mark.parametrize("graph", [False, True])
def test_a_decoder_begins_anew_in_the_same_memory(graph, log):
    """Every trace of the first text is gone: state, tokens, draws, stops, what was seen."""
    model, how = build("W{window: 4}MA"), {"sampler": Sampler(temperature=1.0, repetition_penalty=1.3), "stop": [5, 9]}
    loop = Decoder(model, model.init_state(2, 64), seed=1, cuda_graph=graph, **how)
    memory = {tensor.data_ptr() for leaf in leaves(loop._rig.state.layers) for tensor in leaf.tensors().values()}
    for seed, lengths in ((1, [7, 7]), (4, [5, 5]), (4, [5, 5]), (1, [7, 7])):
        loop.restart(seed)
        ids = torch.stack(prompts_of(lengths, seed))
        found = torch.cat([loop.read(ids)[:, None], loop.decode(20)], dim=1)
        expected = Stream(model, ids, 21, seed=seed, cuda_graph=False, **how)
        assert torch.equal(found, expected.rest()[:, : found.shape[1]])
        assert torch.equal(loop.counts, expected.counts)
    assert log.count("record") == 2 * graph  # a step; prompts of up to 16 tokens
    state = loop.state
    assert {tensor.data_ptr() for leaf in leaves(state.layers) for tensor in leaf.tensors().values()} == memory
    for forbidden in (lambda: loop.restart(), lambda: loop.read(ids), lambda: loop.step()):
        with pytest.raises(StateError, match="the state was taken"):
            forbidden()


def test_capacity_is_checked_before_each_step():
    for graph in (False, True):
        model = build("MA")
        loop = Decoder(model, model.init_state(2, 8), cuda_graph=graph)
        loop.read(torch.stack(prompts_of([5, 5])))
        loop.decode(3)
        with pytest.raises(StateError, match="row 0 would hold 9 tokens, and max_length is 8"):
            loop.step()
        assert loop._rig.state.position.tolist() == [8, 8]


def test_rows_that_stopped_need_no_room():
    """The longer row stops; the shorter one may fill its own part of the state, and not more."""
    model, results = build("MA"), []
    ids, valid = torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.bool)
    valid[1, 2:] = False
    for graph in (False, True):
        loop = Decoder(model, model.init_state(2, 8), cuda_graph=graph)
        loop.read(ids, valid)
        loop.end(0)
        results.append(loop.decode(6))
        assert loop._rig.state.position.tolist() == [7, 8]
        with pytest.raises(StateError, match="row 1 would hold 9"):
            loop.step()
    assert torch.equal(*results)


def test_nothing_to_decode_is_said():
    model = build("M")
    loop = Decoder(model, model.init_state(1, 8))
    with pytest.raises(StateError, match="it has read nothing yet"):
        loop.step()
    loop.read(torch.zeros(1, 2, dtype=torch.int64))
    assert loop.state is loop.state
    with pytest.raises(StateError, match="the state was taken"):
        loop.decode(1)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=1.0)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_are_noticed_before_tokens_are_given(sampler, value):
    """Weights go bad after the first tokens, in place; the steps until the host looks must not harm the device."""
    model, prompts = build("M"), prompts_of([3, 3])
    stream = Stream(model, prompts, 40, sampler=sampler, cuda_graph=True)
    for _ in range(4):
        next(stream)
    with torch.no_grad():
        model.final_norm.weight[3] = value
        model.lm_head.weight[:, 3] = 1.0
    with pytest.raises(CheckpointError, match="prompt 0: the model's logits are not finite"):
        stream.rest()
    seen = Stream(model, prompts, 60, sampler=sampler, cuda_graph=True)
    with pytest.raises(CheckpointError):
        list(seen)
    assert seen.counts.tolist()[0] <= 2 * decoder.LOOK


@pytest.mark.parametrize(
    ("length", "size"), [(1, 16), (16, 16), (17, 24), (25, 32), (33, 48), (1025, 1536), (2048, 2048)]
)
def test_buckets(length, size):
    assert decoder.bucket(length) == size
