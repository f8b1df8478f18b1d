"""Stage 1: train the teacher and fill the teacher-output store. `python -m src.exp.run_teacher [overrides]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> float | None:
    from src.core.candidates import load_candidates
    from src.core.data_utils import load_dataset
    from src.core.logging import get_logger
    from src.exp.results import StoreRanks, done_before, record, record_choices, store_note
    from src.exp.select import selected_samples
    from src.teacher.export import fill_store, refuse_other_weights
    from src.teacher.factory import build_teacher
    from src.teacher.overfit import learn_by_heart, wants_overfit
    from src.teacher.quality import ensure_quality

    log = get_logger(__name__)
    if wants_overfit(settings.teacher):  # a debug help: the run keeps no fingerprint and is nobody's result
        learn_by_heart(settings.teacher, load_dataset(settings.dataset), run)
        return None
    if done_before(settings, run, settings.teacher_fp):
        return None
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)  # before the training: it may refuse
    folder, config = settings.teacher_dir, settings.teacher
    selection = selected_samples(settings, data)
    store, reused = fill_store(config, data, folder, run, None if selection is None else selection.sample_ids)
    if run.main:
        known, encoder = store.in_sample_ids(), getattr(config, "encoder", None)
        quality = ensure_quality(store, data, known, config.export, config.seed, encoder)
        log.info("quality of the teacher's rankings: %s/quality.md", quality)
    if candidates is not None:
        teacher = build_teacher(config, data)
        teacher.prepare(None)  # every process of a launch
        refuse_other_weights(store, teacher)
        if run.main:
            record_choices(run, data, candidates, teacher.choose(candidates))
    run.write_times(
        reused=reused,
        teacher_train_time_total=store.seconds("train_seconds", within="trained"),
        distill_teacher_export_time=store.seconds("export_seconds"),
    )
    shorter = 0 if store.manifest.get("history_excluded") else data.max_history
    lengths = (store.top_k, store.top_k - shorter)
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
