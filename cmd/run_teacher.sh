#!/usr/bin/env bash
# 教師を学習し、教師出力を書き出す。引数はそのまま Hydra の上書きになる。
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_teacher "$@"
