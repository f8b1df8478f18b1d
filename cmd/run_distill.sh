#!/usr/bin/env bash
# 教師出力から生徒へ蒸留する。引数はそのまま Hydra の上書きになる。
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_distill "$@"
