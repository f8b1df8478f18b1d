# shellcheck shell=bash
# リポジトリの根と、使う Python の場所。ここ以外では決めない（source して使う）。
# コンテナでは Dockerfile が ANYO_VENV を /workspace の外に定める。

ANYO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ANYO_VENV="${ANYO_VENV:-${ANYO_ROOT}/.venv}"
ANYO_PYTHON_BIN="${ANYO_VENV}/bin/python"
export ANYO_ROOT ANYO_VENV ANYO_PYTHON_BIN

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}
