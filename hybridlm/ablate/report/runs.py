"""What was run, what failed, and how to do it again."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter

import hybridlm
from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import Block, Cell, Code, Key, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts
from hybridlm.ablate.report.strip import strip_of
from hybridlm.ablate.study import Arm, Data, Match

MOST_FAILURES = 100
MOST_SHOWN = 30  # arms whose tables are not folded
PACKAGES = ("torch", "numpy", "lightning")


def arms(facts: Facts) -> Section:
    """Every arm of the study, those without results too: a table with its pattern, costs and residual."""
    study = facts.study
    length = study.arms[0].cost.length
    title = f"{words.plural(len(study.arms), 'arm')}, the reference is {words.readable(study.reference, 60)}"
    head = ["arm", "pattern", "changes", "attention / layers", "attention / mixers", "attention / parameters"]
    rows = [_arm(facts, arm) for arm in study.arms]
    made = Table(title, head, rows, frozenset({3, 4, 5}), folded=len(rows) > MOST_SHOWN)
    head = ["arm", "parameters", "training FLOPs a token", f"FLOPs of token {length:,}", f"cache at {length:,}"]
    head += ["residual of the match"] * (study.match is not None) + ["best lr", "seeds finished"]
    costs = [_cost(facts, arm) for arm in study.arms]
    cost = Table("What each costs, and how it was trained", head, costs, frozenset(range(1, len(head))), made.folded)
    layers = [layer for arm in study.arms for layer in strip_of(arm.spec).layers]
    key = Key(list(dict.fromkeys(mixer for mixers, _ in layers for mixer in mixers)), any(mlp for _, mlp in layers))
    warnings = [Paragraph(f"Warning of the study file: {words.readable(text)}") for text in study.warnings]
    return Section("arms", "What was run", [Paragraph(_about(facts)), *warnings, key, made, cost])


def _arm(facts: Facts, arm: Arm) -> list[Cell]:
    cost = arm.cost
    shares = [words.share(cost.attention_of_layers), words.share(cost.attention_of_mixers)]
    return [facts.cell(arm.name), strip_of(arm.spec), _changes(arm), *shares, f"{cost.attention_of_parameters:.1%}"]


def _cost(facts: Facts, arm: Arm) -> list[Cell]:
    cost, best = arm.cost, facts.best.get(arm.name)
    done = len(facts.results.rows(arm.name, best)) if best is not None else 0
    sizes = [
        f"{cost.params:,}",
        words.count(cost.flops_train),
        words.count(cost.flops_infer),
        words.size(cost.cache_bytes),
    ]
    residual = ["–" if arm.residual is None else words.minus(f"{arm.residual:+.2%}")] * (facts.study.match is not None)
    told = [*residual, "–" if best is None else f"{best:g}", f"{done} of {facts.study.seeds}"]
    return [facts.cell(arm.name), *sizes, *told]


def _changes(arm: Arm) -> str:
    """Its changes; of the pattern, which stands beside them, the word alone."""
    said = [path if path == "pattern" else f"{path}: {value}" for path, value in arm.changes.items()]
    return words.readable(", ".join(said), 160) or "none"


def _about(facts: Facts) -> str:
    study, train = facts.study, facts.study.train
    grid = ", ".join(f"{lr:g}" for lr in study.lr)
    match = _match(study.match) if study.match else "The arms are not matched."
    stop = f", ended early at {train.stop_at.metric} {train.stop_at.value:g}" if train.stop_at else ""
    counts = {"arm": len(study.arms), "seed": study.seeds, "learning rate": len(study.lr)}
    tests = "; ".join(f"{words.readable(one.name, 40)} ({data_words(one)})" for one in study.eval)
    return (
        f"{' × '.join(words.plural(count, name) for name, count in counts.items())} ({grid}). {match} "
        f"Trained on {data_words(study.data)}: {train.steps:,} steps of {train.batch_size}, {train.schedule} schedule, "
        f"{train.precision}{stop}. {f'Tested as well on {tests}. ' if tests else ''}"
        "Boxes of a pattern run from the bottom of the stack (left) to its top: mixers above, MLPs below."
    )


def _match(match: Match) -> str:
    """In what the arms agree, and by what."""
    what = {"params": "parameters", "flops_train": "training FLOPs", "flops_infer": "FLOPs of a token"}
    length = f" at {match.at:,} tokens" if match.at else ""
    by = "the width of their MLPs" if match.by == "mlp" else "the width of the model"
    return f"The arms are matched in {what.get(match.to, 'cache bytes')}{length}, by {by}."


def data_words(data: Data) -> str:
    """A task with its difficulty, or text with its context."""
    if data.task is None:
        return words.readable(f"text {data.text}, windows of {data.context} tokens", 120)
    params = ", ".join(f"{name} {value}" for name, value in data.params.items())
    return words.readable(f"{data.task} ({params})" if params else data.task, 160)


def failures(facts: Facts) -> Section:
    """Trials without a result, and those that ended on a number that is none."""
    missing = facts.results.missing
    diverged = [row for row in facts.results.table if row["diverged_at"] is not None]
    if not missing and not diverged:
        return Section("failed", "What failed", left_out="every trial finished, and none diverged.")
    blocks: list[Block] = []
    if missing:
        rows = [[facts.cell(m.arm), str(m.seed), f"{m.lr:g}", m.key, words.readable(m.why, 300)] for m in missing]
        blocks += _cut("Trials without a result", ["arm", "seed", "lr", "key", "why"], rows)
    if diverged:
        rows = [
            [facts.cell(r["arm"]), str(r["seed"]), f"{r['lr']:g}", r["key"], f"step {r['diverged_at']:,}"]
            for r in diverged
        ]
        blocks += _cut(
            "Trials that diverged: they end with the weights before that step",
            ["arm", "seed", "lr", "key", "where"],
            rows,
        )
    return Section("failed", "What failed", blocks)


def _cut(title: str, head: list[str], rows: list[list[Cell]]) -> list[Block]:
    more = [Paragraph(f"{len(rows) - MOST_FAILURES:,} more are not listed.")] if len(rows) > MOST_FAILURES else []
    return [Table(title, head, rows[:MOST_FAILURES], frozenset({1, 2})), *more]


def reproduce(facts: Facts) -> Section:
    """The command, what it took, with which versions, and the study file itself."""
    table, study = facts.results.table, facts.study
    unique = {row["key"]: row for row in table}
    seconds = sum(row["seconds"] for row in unique.values())
    devices = Counter(str(row["device"]) for row in unique.values())
    ran = ", ".join(f"{words.readable(device, 60)} ({count})" for device, count in devices.most_common())
    versions = ", ".join(
        [f"hybridlm {hybridlm.__version__}", *[f"{p} {importlib.metadata.version(p)}" for p in PACKAGES]]
    )
    about = (
        f"{words.plural(len(unique), 'trial')} took {words.duration(seconds)} of their devices' time together"
        f"{f', on {ran}' if ran else ''}. This report was made with {versions}, Python {platform.python_version()}. "
        "Every trial is a function of its spec, data, seed and learning rate; finished ones are found again by the "
        "hash of these and not run twice."
    )
    command = Code("hybridlm ablate study.yaml", "Command")
    return Section(
        "reproduce", "How to reproduce", [Paragraph(about), command, Code(study.to_yaml(), "study.yaml", folded=True)]
    )
