#!/usr/bin/env bash
# すべての検査（シェル・Dockerfile・Python の体裁）と試験を、通信なしで行う。引数は pytest に渡る。
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
check pytest "${bin}/python" -m pytest -q "$@"

if ((${#failed[@]})); then
  printf 'test: 失敗: %s\n' "${failed[*]}" >&2
  exit 1
fi
