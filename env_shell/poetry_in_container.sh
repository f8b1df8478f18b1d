#!/usr/bin/env bash
# コンテナの中の poetry（Dockerfile が PATH に置く）。
# `poetry install` は env_shell/setup.sh が行う。イメージの torch を残して、残りを poetry.lock の版で入れるため。
set -euo pipefail

case "${1:-}" in
  install)
    [[ $# -eq 1 ]] || {
      echo "poetry: コンテナの中では引数なしの poetry install だけが使える（イメージの torch を置き換えないため）" >&2
      exit 1
    }
    exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"
    ;;
  sync)
    echo "poetry: コンテナの中では sync は使えない（イメージの torch を置き換えるため）。poetry install を使う" >&2
    exit 1
    ;;
  *) exec "${ANYO_POETRY}" "$@" ;;
esac
