#!/usr/bin/env bash
# Runs a table of experiments: plan, jobs, summary; the same command again goes on.
#   bash cmd/run_table.sh conf/table/example.csv [dry_run=true] [engine=ray] [Hydra override ...]
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "${ANYO_PYTHON_BIN}" -m src.exp.run_table "$@"
