"""Findings are made of rows, by names and lengths."""

from __future__ import annotations

from benchmarks.ratios import kernel_findings
from benchmarks.rows import Row, failures, records, table
from benchmarks.whole import generation_findings, training_findings


def rows(**times: list[float]) -> list[Row]:
    """Forward rows at lengths 1,024 and 4,096."""
    lengths = ("1,024", "4,096")
    names = {"selective_scan": "selective scan N=64", "old_scan": "selective scan N=16"}
    return [
        Row(
            f"{names.get(op, op)}, L={length}, forward",
            "flash_attn" if op == "attention" else "x",
            seconds=[seconds],
        )
        for op, values in times.items()
        for length, seconds in zip(lengths, values, strict=True)
    ]


def test_ratios_and_crossing():
    found = kernel_findings(
        rows(ssd=[2, 2], old_scan=[1, 1], selective_scan=[4, 10], attention=[1, 4]), [1024, 4096], "forward"
    )
    assert [said for *_, said in found] == ["2.0 at 1,024, 5.0 at 4,096", "2,048", "0.5 at 1,024, 2.0 at 4,096"]
    assert kernel_findings(rows(ssd=[2, 2]), [1024, 4096], "forward + backward") == []


def test_a_crossing_outside_is_said():
    low = kernel_findings(rows(ssd=[2, 2], attention=[3, 4]), [1024, 4096], "forward")
    high = kernel_findings(rows(ssd=[2, 2], attention=[1, 1.5]), [1024, 4096], "forward")
    assert (low[0][-1], high[0][-1]) == ("below 1,024", "above 4,096")


def test_ratio_is_to_the_fastest_of_ours():
    told = records(
        [
            Row("c", "a", ours=True, seconds=[2.0]),
            Row("c", "b", ours=True, seconds=[1.0, 3.0, 0.5]),
            Row("c", "peer", seconds=[4.0], tokens=8, floor=1.0),
            Row("c", "gone", why="not installed"),
            Row("d", "gone", why="not installed"),
        ]
    )
    assert [record.get("ratio") for record in told] == [2.0, 1.0, 4.0, None, None]
    assert (told[2]["tokens_per_s"], told[2]["of_floor"]) == (2.0, 0.25)
    assert failures(told) == ["gone (2 cases): not installed"]
    titles, lines = table(told[:3])
    assert titles == ["case", "contender", "ms", "spread", "x ours", "tokens/s", "of floor"]
    assert lines[2] == ["c", "peer", "4,000", "4,000 .. 4,000", "4.00", "2", "25%"]


def test_whole_models_stand_to_the_transformer():
    times = {"Transformer": [1.0, 3.0], "Mamba-2": [2.0, 1.5], "hybrid": [1.0, None]}
    told = [
        Row(f"training L={length}", name, seconds=[time] if time else [])
        for name, both in times.items()
        for length, time in zip(("128", "4,096"), both, strict=True)
    ]
    assert [said for *_, said in training_findings(told)] == ["0.50 at 128, 2.00 at 4,096", "1.00 at 128"]


def test_generation_compares_the_best_of_each():
    best = {
        "Transformer": Row("generation batch 64", "Transformer", seconds=[0.5], tokens=64),
        "Mamba": Row("generation batch 512", "Mamba", seconds=[1.0], tokens=512),
    }
    ((what, _, said),) = generation_findings(best)
    assert "Mamba over an equal Transformer" in what
    assert said == "4.0 (Mamba 512 tokens/s at batch 512; Transformer 128 tokens/s at batch 64)"
    assert generation_findings({"Mamba": best["Mamba"]}) == []
