"""MQAR read from its text: a table of the context's pairs, and every key again, once, at an even place behind them."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    pairs = draw(st.integers(1, 12))
    vocab_size = draw(st.integers(max(2 * pairs + 2, 14), 80))  # enough different samples for both families
    length = 2 * draw(st.integers(max(2 * pairs, 8), 40))
    fillers = draw(st.sampled_from(["zero", "random"]))
    return {"pairs": pairs, "vocab_size": vocab_size, "length": length, "fillers": fillers}


def check(task, sample):
    assert len(sample["ids"]) == task.length
    check_recall(sample, task.pairs, task.vocab_size, zero_fillers=task.fillers == "zero")


def guesser(task, sample, random):
    """Any value of the context, wherever one is asked."""
    return any_value(sample, task.pairs, random)


def check_recall(sample, pairs, vocab_size, zero_fillers):
    ids, targets = sample["ids"].tolist(), sample["targets"].tolist()
    table = dict(zip(ids[: 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
    assert len(table) == pairs == len(set(table.values()))
    assert all(1 <= key < vocab_size // 2 for key in table)
    assert all(vocab_size // 2 <= value < vocab_size for value in table.values())
    asked = {place: answer for place, answer in enumerate(targets) if answer != -100}
    assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
    assert sorted(ids[place] for place in asked) == sorted(table)  # every key once
    if zero_fillers:  # then the text alone says what is asked
        expected = [table.get(token, -100) if place >= 2 * pairs else -100 for place, token in enumerate(ids)]
        assert targets == expected
    else:
        assert all(answer == table[ids[place]] for place, answer in asked.items())


def any_value(sample, pairs, random):
    return random.choice(sample["ids"][1 : 2 * pairs : 2], size=len(sample["ids"]))
