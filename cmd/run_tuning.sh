#!/usr/bin/env bash
# Tunes student and distillation on validation, the same number of trials for both, and prints each list, best first.
# Arguments are Hydra overrides for every trial; name the student among them (student=gru4rec). The two grids are
# Hydra sweeps: BASELINE_GRID of student.*, DISTILL_GRID of distill.* (on the student as the overrides give it).
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

read -ra baseline <<<"${BASELINE_GRID:-student.dropout=0.1,0.4 student.lr=0.001,0.002 student.ema=0,0.999}"
read -ra distill <<<"${DISTILL_GRID:-distill.lam=0.8,2 distill.embedding=fuse,align,both,none}"

trials() { # number of trials of a grid
  local count=1 values axis
  for axis in "$@"; do
    IFS=, read -ra values <<<"${axis#*=}"
    ((count *= ${#values[@]}))
  done
  printf '%d' "${count}"
}
((${#baseline[@]} && ${#distill[@]} && $(trials "${baseline[@]}") == $(trials "${distill[@]}"))) ||
  die "found $(trials "${baseline[@]}") baseline and $(trials "${distill[@]}") distillation trials, expected equally many: change BASELINE_GRID or DISTILL_GRID"

stage() { "${ANYO_PYTHON_BIN}" -m "src.exp.$1" "${@:2}"; }

stage run_student_baseline --multirun "$@" "${baseline[@]}" skip_if_done=true
stage run_teacher "$@" skip_if_done=true
stage run_distill --multirun "$@" "${distill[@]}" skip_if_done=true
stage trials student_baseline "$@"
stage trials distill "$@"
