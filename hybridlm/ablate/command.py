"""`hybridlm ablate STUDY.yaml`: what a study will do and take, then its runs, and the report of what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlm.errors import DataError

if TYPE_CHECKING:
    from hybridlm.ablate.study import Study


def ablate(
    study: str,
    dry_run: bool = False,
    out: str | None = None,
    executor: str | None = None,
    processes: int | None = None,
    over_budget: bool = False,
) -> None:
    """Compare models as a study file says: arms matched in size, seeds paired, claims judged by their bars.

    Everything is checked first, and nothing runs unless all of it is right. A run that has finished is never run
    again: the same command goes on where it was stopped.

    Args:
        study: a study file, or the name of a shipped one such as recall-rescue.
        dry_run: only say what would run: arms, their costs, the residual of the match, and the time.
        out: folder of the results; default runs/studies and the study's name.
        executor: where runs go: local (processes here), gpu (a process a GPU), slurm or ray; default local, or gpu
            where the budget is in GPU hours.
        processes: how many at a time, of local and gpu; default the cores of the budget, or all GPUs.
        over_budget: run it though it will take longer than its budget.
    """
    from hybridlm.ablate.dry_run import show
    from hybridlm.ablate.predict import predict, require_budget
    from hybridlm.ablate.study import Study
    from hybridlm.resources import find_config

    read = Study.read(find_config(study, "studies"))
    predicted = predict(read)
    show(read, predicted)
    sys.stdout.flush()
    if not over_budget:
        require_budget(read, predicted)
    if not dry_run:
        where = executor or ("gpu" if read.budget and read.budget.gpu_hours else "local")
        _run(read, Path(out or f"runs/studies/{read.name}"), where if processes is None else f"{where}:{processes}")


def _run(study: Study, folder: Path, executor: str) -> None:
    """Run what is left of it, and write the report of whatever there is then."""
    from hybridlm.ablate.claims import judge_all
    from hybridlm.ablate.report import write
    from hybridlm.ablate.results import load
    from hybridlm.ablate.run import run

    ran = run(study, folder, executor)
    results = load(study, folder)
    page = write(results, folder / "report")
    for verdict in judge_all(results):
        print(f"{verdict.verdict}: {verdict.claim.name}: {verdict.said}")
    print(page)
    if ran.stopped:
        raise KeyboardInterrupt
    if ran.failed:
        raise DataError(f"{len(ran.failed)} packs crashed; run it again to try them again, see {folder}/packs")
