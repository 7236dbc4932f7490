"""Every registered task: its samples against an independent reading, its families, its guess, and hostile difficulties.

tests/tasks/oracles/NAME.py has, of each task: `params()`, a strategy of legal difficulties with samples of both
families; `check(task, sample)`, which works out the answers from what the model reads and the task's definition;
`guesser(task, sample, random)`, an answer at every position by somebody who guesses.
"""

from __future__ import annotations

import importlib
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.errors import SpecError
from hybridlm.registry import tasks
from hybridlm.tasks.data import TaskData
from hybridlm.tasks.difficulty import difficulty
from hybridlm.tasks.task import HELD_OUT, TRAINING, Samples, family_of, make

NAMES = tasks.names()
HOSTILE = [True, "x", [], {}, float("nan"), float("inf"), -1, 1 << 70, 1e300, 2.5]
every_task = pytest.mark.parametrize("name", NAMES)


def oracle(name):
    return importlib.import_module(f"tests.tasks.oracles.{name}")


def difficulties(name):
    """Strategy of (task, seed)."""
    return st.tuples(oracle(name).params().map(lambda params: make(name, params)), st.integers(0, 1 << 40))


def read(sample) -> bytes:
    return (sample["ids"] if "ids" in sample else sample["inputs"]).tobytes()


def asked(targets: np.ndarray) -> np.ndarray:
    return ~np.isnan(targets) if targets.dtype.kind == "f" else targets != -100


def check(task, sample) -> None:
    """What holds of any sample, and what the task's own oracle says of it."""
    values, targets = (sample["ids" if task.kind == "tokens" else "inputs"], sample["targets"])
    assert len(values) == len(targets) <= task.length
    assert asked(targets).any()
    if task.kind == "tokens":
        assert values.dtype == targets.dtype == np.int64
        assert 0 <= values.min() <= values.max() < task.vocab_size
        assert 0 <= targets[asked(targets)].min() <= targets.max() < task.vocab_size
    else:
        assert values.dtype == targets.dtype == np.float32
        assert (values.shape[1:], targets.shape[1:]) == ((task.channels,), (task.outputs,))
        assert np.isfinite(values).all()
    oracle(task.name).check(task, sample)


# ------------------------------------------------------------------------------------------------------------- samples
@every_task
def test_answers_are_those_of_an_independent_reading(name):
    @settings(max_examples=10)
    @given(difficulties(name))
    def law(drawn):
        task, seed = drawn
        for family in (TRAINING, HELD_OUT):
            for number in range(3):
                sample = Samples(task, seed).sample(family, number)
                check(task, sample)
                assert not task.by_content or family_of(sample) == family

    law()


@every_task
def test_answers_by_default(name):
    for number in range(5):
        check(make(name), Samples(make(name), 0).sample(TRAINING, number))


@every_task
def test_a_sample_is_a_function_of_seed_and_number(name):
    @settings(max_examples=5)
    @given(difficulties(name), st.permutations(range(6)))
    def law(drawn, order):
        task, seed = drawn
        samples = Samples(task, seed)
        alone = [samples.sample(HELD_OUT, number) for number in range(6)]
        batch = samples.batch(HELD_OUT, order)
        lengths = batch["valid"].sum(1) if "valid" in batch else torch.full((6,), batch["targets"].shape[1])
        for row, number in enumerate(order):
            for key, values in alone[number].items():
                assert np.array_equal(
                    batch[key][row, : lengths[row]].numpy(), values, equal_nan=values.dtype.kind == "f"
                )
            rest = batch["targets"][row, lengths[row] :].numpy()
            assert not asked(rest).any()

    law()


@every_task
def test_another_seed_and_another_number_are_other_samples(name):
    task = make(name)
    if task.by_content:
        drawn = [Samples(task, seed).sample(TRAINING, number) for seed in (0, 1) for number in range(20)]
        assert len({read(sample) for sample in drawn}) > 30


@every_task
def test_no_sample_is_in_both_families(name):
    overlap(name, {}, 20)


def overlap(name, params, count):
    task = make(name, params)
    if not task.by_content:
        return
    found = {}
    for family in (TRAINING, HELD_OUT):
        drawn = [Samples(task, seed).sample(family, i) for seed in (0, 1) for i in range(count)]
        assert {family_of(sample) for sample in drawn} == {family}
        found[family] = {read(sample) for sample in drawn}
    assert not found[TRAINING] & found[HELD_OUT]


SMALL = {
    "parity": {"length": 9},
    "induction_heads": {"vocab_size": 4, "length": 6},
    "copying": {"vocab_size": 4, "tokens": 8},
    "mqar": {"vocab_size": 6, "length": 12, "pairs": 2},
    "selective_copying": {"vocab_size": 5, "tokens": 3, "length": 9},
    "compression": {"vocab_size": 4, "seq_len": 6},
}
"""Tasks with so few different samples that they come again and again."""


@pytest.mark.parametrize("name", SMALL)
def test_what_comes_again_comes_in_one_family_only(name):
    """Of large tasks two draws never meet: nothing would be seen there if there were no families."""
    task, found = make(name, SMALL[name]), {}
    for family in (TRAINING, HELD_OUT):
        drawn = [read(Samples(task, seed).sample(family, i)) for seed in (0, 1, 2) for i in range(200)]
        found[family] = set(drawn)
        assert len(found[family]) < len(drawn) - 50
    assert not found[TRAINING] & found[HELD_OUT]


@pytest.mark.parametrize("name", [n for n in NAMES if not tasks.get(n).by_content])
def test_what_is_learned_by_heart_is_asked(name):
    task = make(name)
    for i in range(20):
        assert read(Samples(task, 0).sample(TRAINING, i)) == read(Samples(task, 0).sample(HELD_OUT, i))


@every_task
def test_one_draw_in_eight_is_held_out(name):
    task, random = make(name), np.random.default_rng(0)
    held = sum(family_of(task.draw(random)) == HELD_OUT for _ in range(200))
    assert not task.by_content or 8 <= held <= 48


@every_task
def test_batches_do_not_depend_on_devices(name):
    def ids(data, start, rank, world, count):
        batches = zip(data.training_samples(start, rank, world), range(count), strict=False)
        return [row for batch, _ in batches for row in batch["targets"].numpy()]

    whole = ids(TaskData(name, batch_size=8), 4, 0, 1, 1)
    first = ids(TaskData(name, batch_size=2), 4, 0, 2, 2)
    second = ids(TaskData(name, batch_size=2), 4, 1, 2, 2)
    shared = [*first[:2], *second[:2], *first[2:], *second[2:]]
    for ours, theirs in zip(whole, shared, strict=True):
        length = min(len(ours), len(theirs))
        assert np.array_equal(ours[:length], theirs[:length], equal_nan=ours.dtype.kind == "f")


# --------------------------------------------------------------------------------------------------------------- guess
@every_task
def test_guessing_gets_what_the_task_says(name):
    @settings(max_examples=4)
    @given(difficulties(name))
    def law(drawn):
        compare_guess(*drawn, count=60)

    law()


def compare_guess(task, seed, count):
    """A guesser's score is the guess of the definition, within 4.5 standard errors over samples."""
    random, surplus = np.random.default_rng(seed), []
    for _ in range(count):
        sample = task.draw(random)
        where = asked(sample["targets"])
        answers = np.broadcast_to(oracle(task.name).guesser(task, sample, random), sample["targets"].shape)
        right, answers = sample["targets"][where], answers[where]
        scores = np.square(right - answers) if task.kind == "numbers" else (right == answers).astype(float)
        surplus.append((scores - task.guess()).sum())
    spread = np.std(surplus)
    if task.kind == "tokens":  # of few right answers it comes out too small: one answer alone has this much
        spread = max(spread, (task.guess() * (1 - task.guess())) ** 0.5)
    error = 4.5 * spread / count**0.5
    assert abs(np.mean(surplus)) <= error + 1e-9 + (4.5 / count if error == 0 else 0)


@every_task
def test_no_constant_answer_beats_the_guess(name):
    task, random = make(name), np.random.default_rng(1)
    targets = [task.draw(random)["targets"] for _ in range(100)]
    answers = np.concatenate([each[asked(each)] for each in targets])
    if task.kind == "tokens":
        share = np.bincount(answers).max() / len(answers)
        assert share <= task.guess() + 4.5 * (0.25 / len(answers)) ** 0.5
    else:
        assert np.var(answers) >= 0.5 * task.guess()


# ----------------------------------------------------------------------------------------------------- bad difficulties
def refusal(name, params) -> str | None:
    """What is wrong with these parameters, if anything is."""
    try:
        make(name, params)
    except SpecError as error:
        return str(error)
    return None


@every_task
def test_each_hostile_value_is_an_error_that_names_task_and_field(name):
    for field in difficulty(tasks.get(name)):
        for value in HOSTILE:
            if value is True and "flag" in field.metadata:
                continue
            begun = time.perf_counter()
            said = refusal(name, {field.name: value})
            assert time.perf_counter() - begun < 0.5
            if said is None:  # a number that happens to be legal
                assert "float" in str(field.type)
                assert field.metadata["low"] <= value <= field.metadata["high"]
            else:
                assert f"{name}.{field.name}: " in said


@every_task
def test_all_problems_are_told_at_once(name):
    fields = [field.name for field in difficulty(tasks.get(name))]
    with pytest.raises(SpecError) as caught:
        make(name, dict.fromkeys(fields, "hostile") | {"nonsense": 1})
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{name}.{field}" for field in ["nonsense", *fields]
    ]


@every_task
def test_a_difficulty_is_refused_or_works(name):
    fields = [f for f in difficulty(tasks.get(name)) if "low" in f.metadata and "int" in str(f.type)]
    small = {f.name: st.one_of(st.integers(-1, 9), st.integers(-1, 70)) for f in fields}

    @settings(max_examples=25)
    @given(st.fixed_dictionaries({}, optional=small), st.integers(0, 1 << 40))
    def law(params, seed):
        if (said := refusal(name, params)) is not None:
            assert all(line.startswith(f"{name}.") for line in said.splitlines())
            return
        task = make(name, params)
        assert np.isfinite(task.guess())
        sample = task.draw(np.random.default_rng(seed))
        assert len(sample["targets"]) <= task.length
        check(task, sample)

    law()


# ---------------------------------------------------------------------------------------------------------------- deep
@pytest.mark.deep
@every_task
def test_ten_thousand_answers(name):
    samples = Samples(make(name), 1)
    for number in range(10_000):
        check(samples.task, samples.sample(TRAINING, number))


@pytest.mark.deep
@every_task
def test_ten_thousand_samples_of_each_family_do_not_meet(name):
    overlap(name, {}, 5_000)


@pytest.mark.deep
@pytest.mark.parametrize("name", SMALL)
def test_ten_thousand_that_come_again_and_again_do_not_meet(name):
    overlap(name, SMALL[name], 5_000)


@pytest.mark.deep
@every_task
def test_many_difficulties(name):
    @settings(max_examples=300)
    @given(difficulties(name))
    def law(drawn):
        task, seed = drawn
        for family in (TRAINING, HELD_OUT):
            check(task, Samples(task, seed).sample(family, 0))

    law()


@pytest.mark.deep
@every_task
def test_guessing_at_many_difficulties(name):
    @settings(max_examples=40)
    @given(difficulties(name))
    def law(drawn):
        compare_guess(*drawn, count=1000)

    law()


@pytest.mark.deep
@every_task
def test_workers_change_nothing(name):
    one, two = (iter(TaskData(name, batch_size=4, workers=workers).train_dataloader()) for workers in (0, 2))
    for _ in range(3):
        ours, theirs = next(one), next(two)
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            torch.testing.assert_close(values, theirs[key], rtol=0, atol=0, equal_nan=True)
