# shellcheck shell=bash
# Sourced: the only place that settles the repository root and the Python in use.
# In the container, the Dockerfile sets ANYO_VENV to a place outside /workspace.

ANYO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ANYO_VENV="${ANYO_VENV:-${ANYO_ROOT}/.venv}"
ANYO_PYTHON_BIN="${ANYO_VENV}/bin/python"
export ANYO_ROOT ANYO_VENV ANYO_PYTHON_BIN

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}
