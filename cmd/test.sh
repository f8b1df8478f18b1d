#!/usr/bin/env bash
# Runs every check (shell, Dockerfile, Python style) and the tests, offline. Arguments go to pytest.
set -euo pipefail

# shellcheck source=cmd/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
bin=${ANYO_VENV}/bin

shell_files=()
while IFS= read -r file; do
  [[ ! -f ${file} ]] || shell_files+=("${file}")
done < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run)

failed=()
check() {
  local name=$1
  shift
  if "$@"; then
    printf 'ok    %s\n' "${name}"
  else
    printf 'FAIL  %s\n' "${name}"
    failed+=("${name}")
  fi
}

check shellcheck "${bin}/shellcheck" -x "${shell_files[@]}"
check shfmt "${bin}/shfmt" -d -i 2 -ci "${shell_files[@]}"
check hadolint "${bin}/hadolint" Dockerfile
check ruff "${bin}/python" -m ruff check --quiet .
check black "${bin}/python" -m black --check --quiet .
check mypy "${bin}/python" -m mypy
check pytest "${bin}/python" -m pytest -q "$@"

if ((${#failed[@]})); then
  printf 'test: failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
