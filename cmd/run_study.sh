#!/usr/bin/env bash
# The study behind "does distillation help?" (conf/table/study.yaml): SEEDS (1,2,3), STUDENTS (sasrec,gru4rec,caser).
# Arguments are Hydra overrides for every row, or vars.NAME=VALUE of the table.
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ -z ${PARTS-} ]] || die "found PARTS, expected vars.NAME=VALUE of conf/table/study.yaml"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_table conf/table/study.yaml "vars.seeds=[${SEEDS:-1,2,3}]" \
  "vars.students=[${STUDENTS:-sasrec,gru4rec,caser}]" "$@"
