"""The official DLLM2Rec code's teacher files, into a teacher-output store and out of one.

    python -m src.exp.official_files import tocf/game dataset=games_dllm2rec teacher=official_files
    python -m src.exp.official_files export tocf/game dataset=games_dllm2rec teacher=ilora

The folder holds `myrank_train.txt`, `confidence_train.txt` and `all_embeddings.pt`, a row per row of the training
table. What was imported is distilled by `run_distill` with the same overrides.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.core.artifacts import is_complete, load_npy, lock
from src.core.data_utils import load_dataset
from src.core.errors import UserError
from src.core.logging import command, get_logger
from src.core.teacher_store import TeacherStore
from src.distill.official_files import files_fingerprint, import_official, training_order, write_official
from src.exp.settings import Settings

log = get_logger(__name__)


def run(action: str, folder: Path, order: Path | None, overrides: list[str]) -> None:
    """Import or export; the log says what was written."""
    settings = Settings.compose(overrides)
    store = settings.teacher_dir
    if action == "import" and settings.teacher.kind != "official_files":
        found = f"teacher.kind={settings.teacher.kind}"
        raise UserError(
            found, "official_files: the files are of no teacher of this project", "teacher=official_files"
        )
    data = load_dataset(settings.dataset)
    if action == "export":
        ids = data.splits["train"] if order is None else load_npy(order)
        write_official(folder, TeacherStore(store, data.fingerprint), ids)
        log.info("%d rows of %s: %s", len(ids), store, folder)
        return
    with lock(store, log.info):
        if is_complete(store):
            imported = TeacherStore(store, data.fingerprint).manifest.get("weights", {}).get("train")
            if imported != files_fingerprint(folder):
                raise UserError(
                    f"{store} holds other files", "a name of its own for each teacher", "teacher.name"
                )
            log.info("imported before: %s", store)
            return
        ids = training_order(folder, data) if order is None else load_npy(order)
        made = import_official(folder, ids, data, store, settings.teacher.name)
        log.info(
            "%d training rows of %d items each: %s", made.manifest["n_samples"]["train"], made.top_k, store
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("import", "export"))
    parser.add_argument("folder", type=Path, help="folder of the official files")
    parser.add_argument("--order", type=Path, help=".npy with the sample id of every row")
    parser.add_argument("overrides", nargs="*", help="as of the stages: dataset=..., teacher=...")
    options = parser.parse_intermixed_args(arguments)
    return command(lambda: run(options.action, options.folder, options.order, options.overrides))


if __name__ == "__main__":
    sys.exit(main())
