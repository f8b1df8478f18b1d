#!/usr/bin/env bash
# The study behind "does distillation help?": for every seed the baseline, the distilled student, its parts, its
# controls and other teachers; ends with the comparison. Arguments are Hydra overrides for every stage.
#   SEEDS     default 1,2,3
#   STUDENTS  default sasrec,gru4rec,caser
#   PARTS     beside baseline and distilled student; default controls,parts,teachers
# The teacher is trained once, with teacher.seed=1.
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

seeds=${SEEDS:-1,2,3}
students=${STUDENTS:-sasrec,gru4rec,caser}
parts=,${PARTS-controls,parts,teachers},
common=(skip_if_done=true teacher.seed=1 "$@")

others=() # of the user's overrides, those that fit any teacher
for argument in "$@"; do
  [[ ${argument} =~ ^[+~]{0,2}teacher([./@=]|$) ]] || others+=("${argument}")
done

stage() { "${ANYO_PYTHON_BIN}" -m "src.exp.$1" "${@:2}"; }
wanted() { [[ ${parts} == *,$1,* ]]; }

# Rows of the table that contradict the overrides are found now, not after hours.
stage run_eval_all compare=study "student=${students%%,*}" "$@" dry_run=true
stage run_teacher "${common[@]}"
for teacher in sasrec knn markov popularity; do
  stage run_teacher "teacher=${teacher}" skip_if_done=true teacher.seed=1 ${others[@]+"${others[@]}"}
done
sweep=("seed=${seeds}" "student=${students}")
stage run_student_baseline --multirun "${sweep[@]}" "${common[@]}"
stage run_distill --multirun "${sweep[@]}" "${common[@]}"
if wanted controls; then
  stage run_distill --multirun "${sweep[@]}" distill.control=shuffle_rankings,permute_embeddings,both "${common[@]}"
fi
if wanted parts; then
  stage run_distill --multirun "${sweep[@]}" distill.embedding=none "${common[@]}"
  stage run_distill --multirun "${sweep[@]}" distill.lam=0 "${common[@]}"
fi
if wanted teachers; then
  for teacher in sasrec knn; do
    stage run_distill --multirun "teacher=${teacher}" "${sweep[@]}" skip_if_done=true teacher.seed=1 \
      ${others[@]+"${others[@]}"}
  done
fi
for student in ${students//,/ }; do
  stage run_eval_all compare=study "compare.seeds=[${seeds}]" "student=${student}" teacher.seed=1 "$@"
done
