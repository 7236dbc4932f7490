"""MAD's selective copying read from its text: what stands before the mark without blanks is what is asked behind it."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def params(draw):
    count = draw(st.integers(4, 20))
    return {
        "num_tokens_to_copy": count,
        "vocab_size": draw(st.integers(5, 40)),
        "seq_len": 2 * count + draw(st.integers(2, 60)),
    }


def check(task, sample):
    blank, mark = task.vocab_size - 2, task.vocab_size - 1
    ids, targets = sample["ids"].tolist(), sample["targets"].tolist()
    assert len(ids) == task.seq_len
    before, behind = ids[: ids.index(mark)], ids[ids.index(mark) + 1 :]
    tokens = [token for token in before if token != blank]
    assert len(tokens) == task.num_tokens_to_copy
    assert before[-1] == tokens[-1]
    assert behind == [blank] * len(tokens)
    assert targets == [-100] * (len(before) + 1) + tokens


def guesser(task, sample, random):
    return random.integers(task.vocab_size - 2, size=len(sample["ids"]))
