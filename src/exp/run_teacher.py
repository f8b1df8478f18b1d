"""Stage 1: train the teacher and fill the teacher-output store. `python -m src.exp.run_teacher [overrides]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> float | None:
    from src.core.artifacts import is_complete, lock
    from src.core.data_utils import load_dataset
    from src.core.logging import get_logger
    from src.core.teacher_store import TeacherStore, discard_partial
    from src.exp.record import StoreRanks, done_before, record, store_note
    from src.teacher.export import export_store
    from src.teacher.factory import build_teacher
    from src.teacher.quality import ensure_quality

    log = get_logger(__name__)
    if done_before(settings, run, settings.teacher_fp):
        return None
    data = load_dataset(settings.dataset)
    folder, config = settings.teacher_dir, settings.teacher
    reused = is_complete(folder)
    with lock(folder, log.info):
        if is_complete(folder):
            store = TeacherStore(folder, data.fingerprint)
            discard_partial(folder)
            log.info("teacher outputs with this fingerprint are there already: %s", folder)
        else:
            teacher = build_teacher(config, data)
            trained = teacher.prepare(run)
            store = export_store(teacher, data, config.export, config.seed, folder, trained)
            quality = ensure_quality(
                store,
                data,
                teacher.train_sample_ids(),
                config.export,
                config.seed,
                getattr(config, "encoder", None),
            )
            log.info("quality of the teacher's rankings: %s/quality.md", quality)
    run.write_times(
        reused=reused,
        teacher_train_time_total=store.manifest["trained"]["train_seconds"],
        distill_teacher_export_time=store.manifest["export_seconds"],
    )
    lengths = (store.top_k, store.top_k - data.max_history)
    valid, test = StoreRanks(store, data, "valid"), StoreRanks(store, data, "test")
    return record(
        run,
        data,
        settings.eval,
        config.seed,
        valid,
        test,
        lengths,
        {"store": str(folder), "note": store_note(store, data)},
    )


def main() -> None:
    run_stage("teacher", work)


if __name__ == "__main__":
    main()
