"""Generation from a state against recomputation without one; ragged prompts, stops, states that go on, bad input."""

import copy
import random

import pytest
import torch

import hybridlm as hl
from hybridlm.errors import CheckpointError, SpecError, StateError
from hybridlm.infer import Sampler, Stream, enlarge
from hybridlm.state import leaves

V = 48
PATTERNS = [
    "AA",
    "MMMA",
    "AM",
    "mM",
    "SS",
    "W{window: 4}MA",
    "SW{window: 3}m",
    "<M|A>S",
    "A@twin M A@twin -",
]


def build(pattern, dtype=torch.float32, **spec):
    """A model whose every parameter is random and whose logits are well apart."""
    model = hl.build(pattern=pattern, d_model=32, vocab_size=V, seed=1, dtype=dtype, **spec)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return model.eval()


def prompts_of(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, V, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def clear_choices(model, sequence, start):
    """Which tokens of sequence[start:] float64 decides by more than 1e-5."""
    double = copy.deepcopy(model).double()
    best = double(sequence[None, :-1]).logits[0].topk(2, dim=-1).values
    return (best[start - 1 :, 0] - best[start - 1 :, 1]) > 1e-5


@torch.no_grad()
def check_against_recomputation(model, prompts, new):
    """Every token is the one that a call on all tokens before it, without a state, would choose."""
    for prompt, sequence in zip(prompts, hl.generate(model, prompts, new), strict=True):
        assert len(sequence) == len(prompt) + new
        assert torch.equal(sequence[: len(prompt)], prompt)
        clear = clear_choices(model, sequence, len(prompt))
        assert clear.float().mean() > 0.5
        for at in range(len(prompt), len(sequence)):
            best = model(sequence[None, :at]).logits[0, -1].argmax()
            assert best == sequence[at] or not clear[at - len(prompt)], f"token {at}"


# ------------------------------------------------------------------------------------- the state against recomputation
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_recomputation(pattern):
    check_against_recomputation(build(pattern), prompts_of([7, 1, 4]), 10)


def random_pattern(draw):
    """2 to 6 layers; every mixer, windows, side by side, an MLP alone, weights used twice."""
    layers = ["A", "M", "m", "S", "W{window: 2}", "W{window: 5}", "<M|A>", "<S|m>", "-", "A@x", "M@y"]
    return " ".join(draw.choice(layers) for _ in range(draw.randint(2, 6)))


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(100))
def test_equals_recomputation_of_random_patterns(seed):
    draw = random.Random(seed)
    pattern = random_pattern(draw) + draw.choice(["", " M", " S", " m"])
    lengths = [draw.randint(1, 12) for _ in range(draw.randint(1, 4))]
    check_against_recomputation(build(pattern), prompts_of(lengths, seed), 12)


@pytest.mark.parametrize("pattern", ["AM", "SW{window: 3}m"])
def test_pads_may_stand_anywhere(pattern, rng):
    """Left, right, in between, over garbage: each row continues as its prompt alone does."""
    model, prompts = build(pattern, torch.float64), prompts_of([3, 5, 2])
    ids = torch.randint(0, V, (3, 6), generator=rng)
    valid = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    ids[valid] = torch.cat(prompts)
    out = hl.generate(model, ids, 8, valid=valid)
    assert torch.equal(out[:, :6], ids)
    for row, prompt in zip(out, prompts, strict=True):
        assert torch.equal(row[6:], hl.generate(model, prompt[None], 8)[0, len(prompt) :])


def test_reads_the_prompt_once_and_then_single_tokens(monkeypatch):
    model, read, judged = build("MA"), [], []
    hidden, logits = model.hidden, model.logits
    monkeypatch.setattr(model, "hidden", lambda ids, *rest, **kw: read.append(ids.shape) or hidden(ids, *rest, **kw))
    monkeypatch.setattr(model, "logits", lambda x: judged.append(x.shape) or logits(x))
    hl.generate(model, torch.zeros(2, 9, dtype=torch.int64), 4)
    assert read == [(2, 9), (2, 1), (2, 1), (2, 1)]
    assert judged == [(2, 32)] * 4


# ------------------------------------------------------------------------------------------------------------ sampling
def test_a_row_samples_the_same_in_any_batch():
    model, prompts = build("MA", torch.float64), prompts_of([5, 2, 5])
    options = {"temperature": 1.5, "top_p": 0.95, "repetition_penalty": 1.2}
    batch = hl.generate(model, prompts, 12, seed=40, **options)
    for row, prompt in enumerate(prompts):
        assert torch.equal(batch[row], hl.generate(model, [prompt], 12, seed=40 + row, **options)[0])
    turned = hl.generate(model, prompts[::-1], 12, seed=[42, 41, 40], **options)
    assert all(torch.equal(a, b) for a, b in zip(batch, turned[::-1], strict=True))


def test_seeds_and_rows_differ():
    model, prompt = build("MA"), prompts_of([4])[0]
    first, twin = hl.generate(model, [prompt, prompt], 16, temperature=1.0)
    other = hl.generate(model, [prompt], 16, temperature=1.0, seed=5)[0]
    assert not torch.equal(first, twin)
    assert not torch.equal(first, other)


def test_the_penalty_sees_prompt_and_new_tokens_but_no_pads():
    """A huge penalty on positive logits leaves no token to be chosen twice; token 0 pads and stays free."""
    model = build("M")
    model.lm_head = torch.nn.Linear(32, V, bias=True)
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(2, 1, V))  # 0 is the best, then 1, 2, ...
    out = hl.generate(model, [[1, 2, 5], [7]], 5, repetition_penalty=100.0)
    assert [row.tolist()[-5:] for row in out] == [[0, 3, 4, 6, 7], [0, 1, 2, 3, 4]]


# --------------------------------------------------------------------------------------------------------------- stops
def first_token(row, start, skip=0):
    """A token of row[start:] that did not occur after start before, at least `skip` places on; and its place."""
    tail = row[start:].tolist()
    return next((token, i) for i, token in enumerate(tail) if i >= skip and token not in tail[:i])


def test_a_stop_token_ends_its_row():
    model, prompts = build("MA"), prompts_of([3, 3])
    free = hl.generate(model, torch.stack(prompts), 12, temperature=2.0)
    token, place = first_token(free[0], 3, skip=2)
    rows = hl.generate(model, prompts, 12, temperature=2.0, stop=token)
    assert torch.equal(rows[0], free[0, : 3 + place + 1])
    tail = free[1, 3:].tolist()
    end = tail.index(token) + 1 if token in tail else 12
    assert torch.equal(rows[1], free[1, : 3 + end])
    padded = hl.generate(model, torch.stack(prompts), 12, temperature=2.0, stop=[token])
    assert padded.shape == (2, 3 + max(place + 1, end))
    assert torch.equal(padded[0, : 3 + place + 1], rows[0])
    assert (padded[0, 3 + place :] == token).all()


def test_all_rows_stopping_ends_it():
    model, prompts = build("MA"), prompts_of([3, 3])
    free = hl.generate(model, torch.stack(prompts), 6)
    assert hl.generate(model, torch.stack(prompts), 6, stop=free[:, 3].tolist()).shape == (2, 4)


@pytest.mark.parametrize("pattern", ["MA", "SW{window: 3}m"])
def test_a_stopped_row_keeps_its_state(pattern):
    """The state of each row is that of its own tokens, to the last one, whatever the other rows went on to do."""
    model, prompts = build(pattern, torch.float64), prompts_of([3, 4])
    stream = Stream(model, prompts, 9, sampler=Sampler(temperature=2.0), seed=1)
    steps = []
    for tokens in stream:
        steps.append(tokens)
        if len(steps) == 3:
            stream.end(0)
    assert stream.counts.tolist() == [3, 9]
    assert all(step[0] == steps[2][0] for step in steps[3:])
    state = stream.state
    assert state.position.tolist() == [6, 13]
    rows = stream.prompts.followed_by(steps, stream.counts.tolist())
    for row, sequence in enumerate(rows):
        check_same_future(model, state.select([row]), sequence)


def check_same_future(model, state, sequence):
    """The state goes on as one does that read the sequence in one call, to 1e-12."""
    probe, room = torch.arange(5)[None], len(sequence) + 5
    with torch.no_grad():
        expected = model(torch.cat([sequence[None], probe], dim=1)).logits[:, len(sequence) :]
        found = model(probe, state=enlarge(model, state, max(room, state.max_length))).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- states that go on
@pytest.mark.parametrize("pattern", PATTERNS)
def test_going_on_from_a_state_equals_one_long_prompt(pattern):
    model, (text, question) = build(pattern, torch.float64), prompts_of([6, 3])
    stream = Stream(model, [text], 4)
    answer = torch.cat([text, *stream])
    state = enlarge(model, stream.state, 20)
    found = hl.generate(model, [question], 7, state=state)[0]
    expected = hl.generate(model, [torch.cat([answer, question])], 7)[0]
    assert torch.equal(found[3:], expected[-7:])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_enlarged_state_is_the_same_state(pattern):
    model, (text,) = build(pattern, torch.float64), prompts_of([6])
    state = Stream(model, [text], 0).state
    before = [{name: tensor.clone() for name, tensor in leaf.tensors().items()} for leaf in leaves(state.layers)]
    larger = enlarge(model, state, 30)
    assert larger.max_length == 30
    assert larger.nbytes == model.init_state(1, 30).nbytes
    check_same_future(model, larger, text)
    for leaf, tensors in zip(leaves(state.layers), before, strict=True):  # the old one is as it was, and still good
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in leaf.tensors().items())
    state.check()


def test_questions_share_a_text_by_forks():
    model, (text, one, two) = build("SMA", torch.float64), prompts_of([9, 2, 3])
    state = enlarge(model, Stream(model, [text], 0).state, 20)
    answers = [hl.generate(model, [question], 5, state=state.fork())[0] for question in (one, two)]
    both = hl.generate(model, [one, two], 5, state=state.select([0, 0]))
    for question, answer, same in zip((one, two), answers, both, strict=True):
        expected = hl.generate(model, [torch.cat([text, question])], 5)[0]
        assert torch.equal(answer[len(question) :], expected[-5:])
        assert torch.equal(same, answer)


def test_the_state_can_be_taken_midway_and_ends_the_stream():
    model, (text,) = build("MA", torch.float64), prompts_of([5])
    stream = Stream(model, [text], 8)
    tokens = [next(stream) for _ in range(3)]
    assert stream.state is stream.state
    check_same_future(model, stream.state, torch.cat([text, *tokens]))
    with pytest.raises(StateError, match="start a new Stream"):
        next(stream)


def test_zero_new_tokens_only_read():
    model, (text,) = build("MA", torch.float64), prompts_of([5])
    assert torch.equal(hl.generate(model, text[None], 0), text[None])
    assert torch.equal(hl.generate(model, [text], 0)[0], text)
    check_same_future(model, Stream(model, [text], 0).state, text)


# ------------------------------------------------------------------------------------------------- nothing else changes
def test_modes_are_restored_and_dropout_is_off():
    model = build("MA", dropout=0.5)
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    ids = torch.stack(prompts_of([4, 4]))
    assert torch.equal(hl.generate(model, ids, 8), hl.generate(model, ids, 8))
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_modes_are_restored_after_an_error():
    model = build("MA").train()
    model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hl.generate(model, torch.zeros(1, 2, dtype=torch.int64))
    assert all(module.training for module in model.modules())


def test_results_can_be_trained_on_and_inputs_are_left_alone():
    model, ids = build("MA"), torch.stack(prompts_of([4, 4])).int()
    given = ids.clone()
    out = hl.generate(model, ids, 4)
    assert out.dtype == torch.int64
    assert torch.equal(ids, given)
    loss = model(out[:, :-1], targets=out[:, 1:]).loss
    loss.backward()
    assert model.embed.weight.grad.abs().sum() > 0
    state = Stream(model, [ids[0]], 2).state
    enlarged = model(out[:1, :1], state=enlarge(model, state, 9))  # gradients flow on from a generated state
    enlarged.logits.sum().backward()


def test_streaming_gives_what_generate_gives():
    model, prompts = build("MA"), prompts_of([4, 2])
    steps = torch.stack(list(Stream(model, prompts, 6)), dim=1)
    rows = hl.generate(model, prompts, 6)
    assert all(torch.equal(steps[i], rows[i][-6:]) for i in range(2))


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"ids: a tensor of shape \(3,\)"),
        (torch.zeros(1, 3), "ids: dtype torch.float32"),
        (torch.ones(1, 3, dtype=torch.bool), "ids: dtype torch.bool"),
        (torch.zeros(1, 0, dtype=torch.int64), "ids: prompt 0 is empty"),
        (torch.tensor([[0, V]]), f"ids: {V} is no token of the model; its vocabulary has ids 0 to {V - 1}"),
        (torch.tensor([[0, -1]]), "ids: -1 is no token"),
        ([[1], []], "ids: prompt 1 is empty"),
        ([[1], [2, V]], f"ids: {V} is no token"),
        ([[1], [0.5]], "ids: prompt 1: dtype torch.float32"),
        ([[1], "ab"], "ids: prompt 1 is 'ab'"),
        ([[1], [[2]]], r"ids: prompt 1: a tensor of shape \(1, 1\)"),
        ([], r"ids: \[\]; give a tensor"),
        ([1, 2], r"ids: \[1, 2\]; give a tensor"),
        ("text", "ids: 'text'; give a tensor"),
        (None, "ids: None; give a tensor"),
    ],
)
def test_bad_prompts_are_named(ids, message):
    with pytest.raises(SpecError, match=f"^{message}"):
        hl.generate(build("M"), ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens: -1 is out of range"),
        ({"max_new_tokens": True}, "max_new_tokens: True is not an integer"),
        ({"max_new_tokens": 2.0}, "max_new_tokens: 2.0 is not an integer"),
        ({"stop": V}, f"stop: {V} is out of range"),
        ({"stop": "a"}, "stop: 'a' is not an integer"),
        ({"top_k": 3}, "top_k: 3 does nothing at temperature 0"),
        ({"seed": [1, 2]}, r"seed: \[1, 2\]; it must be an integer, or a list of one for each of the 1 rows"),
        ({"valid": torch.ones(1, 2)}, "valid: a float32 tensor"),
        ({"valid": torch.ones(1, 3, dtype=torch.bool)}, r"valid: a bool tensor of shape \(1, 3\)"),
        ({"valid": torch.zeros(1, 2, dtype=torch.bool)}, "ids: prompt 0 is empty"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(SpecError, match=f"^{message}"):
        hl.generate(build("M"), torch.ones(1, 2, dtype=torch.int64), **options)


def test_a_mask_for_a_list_is_refused():
    with pytest.raises(SpecError, match="valid: it goes with a padded tensor"):
        hl.generate(build("M"), [[1, 2]], valid=torch.ones(1, 2, dtype=torch.bool))


def test_bad_states_are_refused_and_stay_good():
    model = build("MA")
    state = model.init_state(2, 8)
    with pytest.raises(StateError, match=r"room for 8 tokens a row; row 1 holds 0, its prompt has 3 and .* 9 together"):
        Stream(model, [[1], [1, 2, 3]], 6, state=state)
    with pytest.raises(StateError, match="2 rows, and there are 1 prompts"):
        Stream(model, [[1]], 2, state=state)
    with pytest.raises(StateError, match="another model"):
        Stream(build("MM"), [[1], [1]], 2, state=state)
    with pytest.raises(StateError, match="state: a dict"):
        Stream(model, [[1], [1]], 2, state={})
    hl.generate(model, [[1], [1]], 2, state=state)
    with pytest.raises(StateError, match="consumed"):
        Stream(model, [[1], [1]], 2, state=state)


def test_enlarge_refuses_what_it_cannot_do():
    model = build("MA")
    state = model.init_state(1, 8)
    with pytest.raises(StateError, match="max_length: 7; the state has 8"):
        enlarge(model, state, 7)
    with pytest.raises(StateError, match="another model"):
        enlarge(build("A"), state, 9)


def test_damaged_weights_do_not_write_text():
    model = build("MA")
    with torch.no_grad():
        model.final_norm.weight[3] = torch.nan
    with pytest.raises(CheckpointError, match="prompt 0: the model's logits are not finite"):
        hl.generate(model, [[1, 2]])
