"""What the four stages do, each from settings and a run that has begun (src/exp/cli.py decides whether it begins).

torch and all that trains is imported with this module: a run that has nothing to do never gets here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.artifacts import fingerprint, lock, write_text
from src.core.candidates import load_candidates
from src.core.data_utils import load_dataset
from src.core.device import describe_device
from src.core.errors import DoneAlready
from src.core.logging import get_logger
from src.core.paths import work_dir
from src.core.run import Run
from src.core.runs import find_runs
from src.core.teacher_store import TeacherStore
from src.distill.trainer_distill import train_distilled
from src.exp import compare, page, report
from src.exp.model_plots import plot_items
from src.exp.parts import PARTS
from src.exp.results import record, record_choices, record_gates, record_student, store_note, store_ranks
from src.exp.select import selected_ids, selection_for
from src.exp.settings import Settings
from src.student.trainer_baseline import train_student
from src.teacher.config import wants_overfit
from src.teacher.export import fill_store, refuse_other_weights
from src.teacher.factory import build_teacher
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.quality import ensure_quality

log = get_logger(__name__)


def _begin(run: Run, what: str, config: Any) -> None:
    device, fp = describe_device(config), run.fingerprint or "(debug run)"
    log.info("%s %s: %s; %s; its result: %s", run.stage, fp, what, device, run.dir)


def run_teacher(settings: Settings, run: Run) -> float | None:
    """Train the teacher, rank the samples, write the store, and record how good its rankings are."""
    from src.teacher.llm_loading import check_llms  # these cost seconds, which no student's process needs
    from src.teacher.overfit import overfit

    config = settings.teacher
    check_llms(config)  # before anything is trained
    if wants_overfit(config):  # a debug help: the run keeps no fingerprint and is nobody's result
        _begin(run, f"lets {config.name} learn a few rows by heart", config)
        overfit(config, load_dataset(settings.dataset), run)
        return None
    _begin(run, f"trains {config.name} and exports its rankings", config)
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)  # before the training: it may refuse
    exported, tuned = (selected_ids(place, settings, data) for place in ("export", "teacher_train"))
    # For the candidates; of a cross-fitted teacher it would lie in memory beside those of the folds.
    teacher = build_teacher(config, data, tuned_ids=tuned) if candidates and config.folds == 1 else None
    store, reused = fill_store(config, data, settings.teacher_dir, run, exported, tuned, teacher)
    if run.main and store.splits:
        known, encoder = store.in_sample_ids(), config.encoder
        ensure_quality(store, data, known, config.export, config.seed, encoder)
    if candidates is not None:
        if reused or teacher is None:
            teacher = build_teacher(config, data, tuned_ids=tuned)
            teacher.prepare(None)  # every process of a launch
        refuse_other_weights(store, teacher)
        if run.main:
            record_choices(run, data, candidates, teacher.choose(candidates))
            if isinstance(teacher, IloraTeacher):
                record_gates(run, data, teacher)
    run.write_times(
        reused=reused,
        teacher_train_time_total=store.seconds("train_seconds", within="trained"),
        distill_teacher_export_time=store.seconds("export_seconds"),
    )
    valid, test = (store_ranks(store, data, s) if s in store.splits else None for s in ("valid", "test"))
    fields = {"store": str(settings.teacher_dir), "note": store_note(store, data), **_teacher(settings)}
    return record(run, data, settings.eval, config.seed, valid, test, fields)


def run_student_baseline(settings: Settings, run: Run) -> float | None:
    """Train the student without a teacher."""
    _begin(run, f"trains {settings.student.name} without a teacher", settings.student)
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)
    with training_folder(run) as folder:
        student, result = train_student(
            settings.student,
            data,
            settings.eval,
            seed=settings.seed,
            folder=folder,
            fingerprint=settings.baseline_fp,
            run=run,
        )
        run.write_times(student_baseline_train_time=result.seconds)
        return record_student(run, data, settings, student, result, candidates)


def run_distill(settings: Settings, run: Run) -> float | None:
    """Train the student with the rows of the teacher-output store."""
    student_name, teacher = settings.student.name, settings.teacher.name
    _begin(run, f"trains {student_name} with the outputs of {teacher}", settings.student)
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)
    store = TeacherStore(settings.teacher_dir, data.fingerprint)
    with training_folder(run) as folder:
        trained, result, rankings = train_distilled(
            settings.student,
            settings.distill,
            settings.active,
            data,
            store,
            settings.eval,
            seed=settings.seed,
            folder=folder,
            # A store exported anew may come from a teacher trained anew: no checkpoint mixes the two.
            fingerprint=f"{settings.distill_fp}/{fingerprint(store.manifest.get('weights'))}",
            run=run,
            selection=selection_for("distill", settings, data),
        )
        run.write_times(distill_student_train_time=result.seconds)
        fields: dict[str, Any] = {
            "store": str(store.folder),
            "note": store_note(store, data),
            **_teacher(settings),
        }
        read = {"rankings": rankings["used"], "embeddings": settings.distill.embedding != "none"}
        fields |= {
            "control": settings.distill.control,
            "rankings": rankings,
            "knowledge": [name for name, used in read.items() if used],
        }
        if run.main and (store.folder / "item_embeddings.safetensors").is_file():
            tables = {
                teacher: store.item_embeddings(),
                student_name: trained.item_table().detach().cpu().numpy(),
            }
            counts, items = data.train_counts()[1:], {name: table[1:] for name, table in tables.items()}
            plot_items(run.dir / "plots" / "item_map", items, counts)
        return record_student(run, data, settings, trained, result, candidates, **fields)


def _teacher(settings: Settings) -> dict[str, str]:
    """Identity of the teacher in `metrics.json`: of its own run, and of the students that learn from it."""
    return {"teacher": settings.teacher.name, "teacher_fingerprint": settings.teacher_fp}


def run_eval_all(settings: Settings, run: Run) -> None:
    """Put the completed runs of the configuration side by side; trains nothing."""
    compare.check_variants(settings)
    data = load_dataset(settings.dataset)
    rows = compare.find_rows(settings, data)
    found = report.compare_rows(rows, data, settings)
    report.write_report(run.dir, found, data)
    page.write_page(run.dir, found, data, settings)
    run.write_metrics(
        {
            "dataset": data.name,
            "dataset_fingerprint": data.fingerprint,
            "n_test": len(data.splits["test"]),
            "models": {row.name: [str(r.folder) for r in row.runs] for row in rows},
            "test": {row.name: [m["test"] for m in row.metrics] for row in rows},
        }
    )
    first: dict[str, float] = {}  # the configuration's own rows come first
    for row in rows:
        first = {**row.times(), **first}
    run.write_times(False, **first)
    summary = f"{found.summary.strip()}\nEverything: {run.dir}/metrics/comparison.md, report.html and {run.dir}/plots/\n"
    write_text(run.dir / "metrics" / "summary.md", summary)  # a later run with nothing to do repeats it
    sys.stdout.write(summary)


@contextmanager
def training_folder(run: Run) -> Iterator[Path]:
    """The checkpoint folder of this run's fingerprint, held alone, removed once the block ends well.

    Raises:
        DoneAlready: another run of this fingerprint completed while this one waited for it.
    """
    folder, waited = work_dir(run.stage, run.fingerprint), []

    def say(line: str) -> None:
        waited.append(line)
        log.info(line)

    with lock(folder, say):
        if waited and (found := find_runs(run.stage, run.fingerprint, "completed")):
            raise DoneAlready(found[-1].folder)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        run.status("completed")  # before the checkpoint goes: a kill between the two loses nothing
        shutil.rmtree(folder)


WORK: dict[str, Callable[[Settings, Run], float | None]] = {
    "teacher": run_teacher,
    "student_baseline": run_student_baseline,
    "distill": run_distill,
    "eval_all": run_eval_all,
    **PARTS,
}
