#!/usr/bin/env bash
# Runs every stage: teacher, control teacher (knn), baselines, distillation, comparison. Finished stages are
# skipped; pass skip_if_done=false to start over.
# Arguments are Hydra overrides for all stages (e.g. bash cmd/run_all.sh dataset=movielens).
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

run() {
  printf '\n== %s\n' "$1"
  "${ANYO_PYTHON_BIN}" -m "src.exp.$2" "${@:3}" || {
    status=$?
    printf 'run_all: %s (src.exp.%s) failed with exit status %s\n' "$1" "$2" "${status}" >&2
    exit "${status}"
  }
}

# Overrides of the teacher (teacher=..., teacher.x=..., teacher/x=...) must not reach the control teacher
control=()
for argument in "$@"; do
  [[ ${argument} =~ ^[+~]{0,2}teacher([./@=]|$) ]] || control+=("${argument}")
done

# skip_if_done=true comes first: Hydra takes the last value of a key, so the user's own wins
run '1/5 teacher' run_teacher skip_if_done=true "$@"
run '2/5 control teacher (knn)' run_teacher teacher=knn skip_if_done=true ${control[@]+"${control[@]}"}
run '3/5 student baselines' run_student_baseline skip_if_done=true "$@"
run '4/5 distillation' run_distill skip_if_done=true "$@"
run '5/5 comparison' run_eval_all "$@"
