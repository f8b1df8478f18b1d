#!/usr/bin/env bash
# 全段を順に動かす: 教師 → 対照の教師（knn）→ ベースライン → 蒸留 → 比較表。済んだ段は飛ばす。
# 引数は全段への Hydra の上書きになる（例: bash cmd/run_all.sh dataset=movielens）。
# 初めからやり直すときは skip_if_done=false を付ける。
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

run() {
  printf '\n== %s\n' "$1"
  "${ANYO_PYTHON_BIN}" -m "src.exp.$2" "${@:3}" || {
    status=$?
    printf 'run_all: %s（src.exp.%s）が終了コード %s で止まった\n' "$1" "$2" "${status}" >&2
    exit "${status}"
  }
}

# 対照の教師には、教師の設定（teacher=…, teacher.…, teacher/…）を渡さない
control=()
for argument in "$@"; do
  [[ ${argument} =~ ^[+~]{0,2}teacher([./@=]|$) ]] || control+=("${argument}")
done

# skip_if_done=true を先に置く: 利用者が同じキーを渡せば、後の値が勝つ
run '1/5 教師' run_teacher skip_if_done=true "$@"
run '2/5 対照の教師（knn）' run_teacher teacher=knn skip_if_done=true ${control[@]+"${control[@]}"}
run '3/5 生徒のベースライン' run_student_baseline skip_if_done=true "$@"
run '4/5 蒸留' run_distill skip_if_done=true "$@"
run '5/5 比較' run_eval_all "$@"
