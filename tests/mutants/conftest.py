"""Counts the mutants at the end of a run."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter) -> None:
    """mutants killed / seeded, of those that ran."""
    outcomes = ("passed", "failed")
    ran = {name: [r for r in terminalreporter.getreports(name) if "mutant_is_caught" in r.nodeid] for name in outcomes}
    if any(ran.values()):
        terminalreporter.write_line(f"mutants killed / seeded: {len(ran['passed'])} / {sum(map(len, ran.values()))}")
