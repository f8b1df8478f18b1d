#!/usr/bin/env bash
# ベースライン・教師・蒸留を比べる表を作る。引数はそのまま Hydra の上書きになる。
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_eval_all "$@"
