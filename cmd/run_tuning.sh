#!/usr/bin/env bash
# Tunes student and distillation on validation, the same number of trials for both (conf/table/tuning.yaml), and lists
# them, best first. Arguments are Hydra overrides for every trial (student=gru4rec), or vars.NAME=VALUE of the table.
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ -z ${BASELINE_GRID-} ]] || die "found BASELINE_GRID, expected vars.NAME=VALUE of conf/table/tuning.yaml"
[[ -z ${DISTILL_GRID-} ]] || die "found DISTILL_GRID, expected vars.NAME=VALUE of conf/table/tuning.yaml"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_table conf/table/tuning.yaml "$@"
