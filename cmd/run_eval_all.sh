#!/usr/bin/env bash
# Tabulates baselines, teachers and distilled students side by side. Arguments are Hydra overrides.
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_eval_all "$@"
