"""Phone book read from its text: the number in the line that begins with the name at the end."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    digits = draw(st.integers(1, 9))
    return {
        "digits": digits,
        "length": 4 * (20 + digits) + draw(st.integers(0, 500)),
        "depth": draw(st.none() | st.floats(0, 1)),
    }


def check(task, sample):
    text = bytes(sample["ids"].tolist()).decode()
    answer = bytes(sample["targets"][-task.digits :].tolist()).decode()
    *book, empty, question = text.split("\n")
    name, begun = question.split(":")
    numbers = dict(line.split(":") for line in book)
    assert empty == ""
    assert len(numbers) == len(book)
    assert all(len(number) == task.digits and number.isdecimal() for number in numbers.values())
    assert begun == answer[:-1]
    assert numbers[name] == answer
    assert (sample["targets"][: -task.digits] == -100).all()
    assert task.length - 2 * max(map(len, [*book, "X" * (18 + task.digits)])) <= len(text) <= task.length
    if task.depth is not None:
        assert list(numbers).index(name) == round(task.depth * (len(numbers) - 1))


def guesser(task, sample, random):
    """Any digit."""
    return random.integers(ord("0"), ord("9") + 1, size=len(sample["ids"]))
