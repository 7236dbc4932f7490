"""The nearest name: what a user who typed something else probably meant."""

import pytest

from hybridlm.errors import did_you_mean, nearest


@pytest.mark.parametrize(
    ("typed", "choices", "meant"),
    [
        (
            "zamba2",
            ["mamba2", "zamba2-2.7b", "zamba2-tiny"],
            "zamba2-tiny",
        ),  # it begins so, though mamba2 is more like it
        ("d_stat", ["dt", "d_state"], "d_state"),
        ("Mamba", ["mamba2", "mamba"], "mamba"),
        ("a", ["A", "M"], "A"),
        ("d", ["dt_min", "expand"], None),
        ("nothing like it", ["A", "M"], None),
    ],
)
def test_nearest(typed, choices, meant):
    assert nearest(typed, choices) == meant
    assert did_you_mean(typed, choices) == (f" Did you mean {meant!r}?" if meant else "")
