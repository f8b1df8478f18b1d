# shellcheck shell=bash
# Sourced by cmd/*.sh: enters the repository root, sets the environment up and settles the Python.
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/common.sh"
cd "${ANYO_ROOT}"
# In the background: bash handles a signal at once only while it waits
bash env_shell/setup.sh --quiet &
trap 'kill "${!}" 2>/dev/null; exit 143' TERM HUP
wait "${!}"
trap - TERM HUP
export HF_HUB_DISABLE_TELEMETRY=1
