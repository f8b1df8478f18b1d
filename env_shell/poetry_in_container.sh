#!/usr/bin/env bash
# The poetry on the container's PATH (linked by the Dockerfile).
# `poetry install` goes to env_shell/setup.sh, which keeps the image's torch and installs the rest as locked.
set -euo pipefail

case "${1:-}" in
  install)
    [[ $# -eq 1 ]] || {
      echo "poetry: in the container, use poetry install without arguments (others could replace the image's torch)" >&2
      exit 1
    }
    exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"
    ;;
  sync)
    echo "poetry: sync would replace the image's torch; in the container, use poetry install" >&2
    exit 1
    ;;
  *) exec "${ANYO_POETRY}" "$@" ;;
esac
