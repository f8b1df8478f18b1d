#!/usr/bin/env bash
# 生徒のベースラインを学習する。引数はそのまま Hydra の上書きになる。
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_student_baseline "$@"
