"""`hybridlm ablate STUDY.yaml`: what a study will do and take, then its runs, and the report of what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlm.errors import DataError, SpecError

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
    from hybridlm.ablate.executors import check_executor
    from hybridlm.ablate.predict import predict, require_budget
    from hybridlm.ablate.run import require_folder
    from hybridlm.ablate.study import Study
    from hybridlm.resources import find_config

    read = Study.read(find_config(study, "studies"))
    where, folder = _executor(read, executor, processes), Path(out or f"runs/studies/{read.name}")
    if executor or processes is not None or not dry_run:  # a dry run says what a GPU would do, wherever it is asked
        check_executor(where)
    require_folder(read, folder)
    predicted = predict(read)
    show(read, predicted)
    sys.stdout.flush()
    if not over_budget:
        require_budget(read, predicted)
    if not dry_run:
        _run(read, folder, where)


def _executor(study: Study, said: str | None, processes: int | None) -> str:
    """The executor by name, with its number of processes."""
    where = said or ("gpu" if study.budget and study.budget.gpu_hours else "local")
    if processes is None:
        return where
    if where not in ("local", "gpu"):
        raise SpecError(f"processes: {processes}; it goes with --executor local or gpu, not with {where}")
    return f"{where}:{processes}"


def _run(study: Study, folder: Path, executor: str) -> None:
    """Run what is left of it, and write the report of whatever there is then."""
    from hybridlm.ablate.claims import judge_all
    from hybridlm.ablate.report import write
    from hybridlm.ablate.results import load
    from hybridlm.ablate.run import run

    ran = run(study, folder, executor)
    results = load(ran.study, folder)
    page = write(results, folder / "report")
    for verdict in judge_all(results):
        print(f"{verdict.verdict}: {verdict.claim.name}: {verdict.said}")
    print(page)
    if ran.stopped:
        raise KeyboardInterrupt
    if ran.failed:
        raise DataError(f"{len(ran.failed)} packs crashed; run it again to try them again, see {folder}/packs")
