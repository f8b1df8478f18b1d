#!/usr/bin/env bash
# Runs every stage: teacher, its rival (tfidf) and control (knn); baseline, distillation and distillation from the
# rival; comparison. Finished stages are skipped; pass skip_if_done=false to start over.
# Arguments are Hydra overrides for all stages (dataset=movielens compare.seeds=[1,2,3]).
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_all "$@"
