#!/usr/bin/env bash
# Builds the environment on a bare machine, CPU or CUDA. Safe to repeat; returns at once if nothing changed.
#
#   bash env_shell/setup.sh [--quiet]
#
# Environment variables (all optional)
#   ANYO_TORCH=cpu|cuda   which torch to install (default: whatever suits the machine)
#   ANYO_TORCH_INDEX=URL  index holding the CPU wheels of torch
#   ANYO_LAUNCHERS=1      also Hydra's launchers for processes side by side (joblib) and clusters (submitit)
#   ANYO_PYTHON=PATH      Python to build the virtual environment from (3.11-3.13)
#   ANYO_POETRY=PATH      Poetry to use
#   ANYO_VENV=DIR         virtual environment (default: .venv)
#   POETRY_PYPI_MIRROR_URL=URL  index Poetry uses (default: the one pip uses)
#
# Afterwards `source .venv/bin/activate` gives python, poetry, tensorboard and accelerate.
# Nothing is compiled here: Python compiles what is imported, when it is imported first.
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "${ANYO_ROOT}"

readonly POETRY_VERSION=2.5.1 MIRROR_PLUGIN_VERSION=0.6.5
readonly CACHE="${ANYO_ROOT}/.cache"
readonly LOG="${CACHE}/setup.log" TORCH_LOG="${CACHE}/setup_torch.log"
readonly STAMP="${ANYO_VENV}/.anyo-setup"

quiet=false
case "${1:-}" in
  '') ;;
  -q | --quiet) quiet=true ;;
  *) die "unknown argument '$1' (only --quiet is accepted)" ;;
esac

say() { printf 'setup: %s\n' "$*" >&2; }

# Output goes to the log; only a failure shows its tail.
logged() {
  local what=$1
  shift
  printf '\n$ %s\n' "$*" >>"${LOG}"
  "$@" >>"${LOG}" 2>&1 </dev/null || {
    tail -n 15 "${LOG}" >&2
    die "${what} failed (full log: ${LOG#"${ANYO_ROOT}/"})"
  }
}

# What still runs in the background, a process group of its own, ends with this script
trap '[[ -z ${torch_job:-} ]] || kill -- "-${torch_job}" 2>/dev/null || true' EXIT
trap 'exit 143' TERM HUP

supported() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${ANYO_PYTHON:+"${ANYO_PYTHON}"} python3 python3.11 python3.12 python3.13; do
    if supported "${candidate}"; then
      command -v "${candidate}"
      return
    fi
    [[ ${candidate} != "${ANYO_PYTHON:-}" ]] ||
      die "ANYO_PYTHON=${ANYO_PYTHON} is unusable: point it at Python 3.11-3.13 with venv and ensurepip"
  done
  die "no Python 3.11-3.13 found: install one (on Debian/Ubuntu, python3-venv too) or set ANYO_PYTHON to its path"
}

dist_version() { "$1" -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$2" 2>/dev/null; }

lock_version() {
  "${python}" - "$1" <<'PY' || die "poetry.lock has no $1"
import sys, tomllib
with open("poetry.lock", "rb") as f:
    print(next(p["version"] for p in tomllib.load(f)["package"] if p["name"] == sys.argv[1]))
PY
}

# image: keep the image's torch / cuda: as locked / cpu: install the CPU build separately
torch_mode() {
  case "${ANYO_TORCH:-}" in
    cpu | cuda) echo "${ANYO_TORCH}" ;;
    '')
      if [[ ${POETRY_VIRTUALENVS_OPTIONS_SYSTEM_SITE_PACKAGES:-} == true ]] && dist_version "${python}" torch >/dev/null; then
        echo image
      elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        echo cuda
      else
        echo cpu
      fi
      ;;
    *) die "ANYO_TORCH='${ANYO_TORCH}' is not valid: use cpu or cuda, or unset it to let the machine decide" ;;
  esac
}

fingerprint() {
  "${ANYO_PYTHON_BIN}" - "${mode}" <<'PY'
import hashlib, sys
from pathlib import Path
parts = [sys.version.encode(), sys.argv[1].encode(), *(Path(n).read_bytes() for n in ("poetry.lock", "pyproject.toml"))]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

find_poetry() {
  local interpreter
  if [[ -n ${ANYO_POETRY:-} ]]; then
    [[ -x ${ANYO_POETRY} ]] || die "ANYO_POETRY=${ANYO_POETRY} is not executable"
    echo "${ANYO_POETRY}"
    return
  fi
  # A Poetry on PATH is trusted only in a version that works with the mirror plugin, and with the plugin
  if command -v poetry >/dev/null; then
    interpreter=$(sed -n '1s/^#!//p' "$(command -v poetry)" 2>/dev/null | tr -d '\0') || interpreter=
    if [[ -x ${interpreter} && $(dist_version "${interpreter}" poetry) == 2.[1-5].* ]] &&
      dist_version "${interpreter}" poetry-plugin-pypi-mirror >/dev/null; then
      command -v poetry
      return
    fi
  fi
  local own="${CACHE}/poetry"
  if [[ $(dist_version "${own}/bin/python" poetry) != "${POETRY_VERSION}" ]] ||
    ! dist_version "${own}/bin/python" poetry-plugin-pypi-mirror >/dev/null; then
    say "installing Poetry ${POETRY_VERSION} into .cache/poetry"
    logged "creating the virtual environment of Poetry" "${python}" -m venv --clear --without-pip "${own}"
    logged "installing Poetry" "${ANYO_PYTHON_BIN}" -m pip --python "${own}/bin/python" install --no-compile \
      "poetry==${POETRY_VERSION}" "poetry-plugin-pypi-mirror==${MIRROR_PLUGIN_VERSION}"
  fi
  echo "${own}/bin/poetry"
}

pip_index() {
  local pip=("${ANYO_PYTHON_BIN}" -m pip)
  if [[ -n ${PIP_INDEX_URL:-} ]]; then
    echo "${PIP_INDEX_URL}"
  else
    "${pip[@]}" config get install.index-url 2>/dev/null || "${pip[@]}" config get global.index-url 2>/dev/null ||
      "${ANYO_PYTHON_BIN}" -c 'from pip._internal.models.index import PyPI; print(PyPI.simple_url)'
  fi
}

# PEP 508 names and versions of what the lock has only for torch, without NVIDIA's libraries
torch_packages() {
  "${ANYO_PYTHON_BIN}" - <<'PY'
import tomllib
with open("poetry.lock", "rb") as f:
    packages = tomllib.load(f)["package"]
for p in packages:
    if "torch" in p["groups"] and not {"main", "dev"} & set(p["groups"]):
        if not p["name"].startswith(("nvidia-", "cuda-", "triton")):
            print(f"{p['name']}=={p['version']}")
PY
}

# Beside Poetry, as torch is the largest download; without dependencies, as Poetry installs those
install_torch() {
  local pip=("${ANYO_PYTHON_BIN}" -m pip install --no-compile) packages
  if [[ ${mode} == image ]]; then
    "${pip[@]}" --no-deps "peft==$(lock_version peft)" "accelerate==$(lock_version accelerate)" \
      "bitsandbytes==$(lock_version bitsandbytes)"
    return
  fi
  if [[ -n ${ANYO_TORCH_INDEX:-} ]]; then
    "${pip[@]}" --no-deps --index-url "${ANYO_TORCH_INDEX}" "torch==${torch}" || return
  fi
  mapfile -t packages < <(torch_packages)
  "${pip[@]}" --no-deps "${packages[@]}"
}

# A wheel of torch that is no CPU build needs NVIDIA's libraries, at the versions of the lock
complete_torch() {
  [[ $(dist_version "${ANYO_PYTHON_BIN}" torch) != *+cpu && $(uname -sm) == "Linux x86_64" ]] || return 0
  "${ANYO_PYTHON_BIN}" - >"${CACHE}/constraints.txt" <<'PY'
import tomllib
with open("poetry.lock", "rb") as f:
    print("\n".join(f"{p['name']}=={p['version']}" for p in tomllib.load(f)["package"]))
PY
  logged "installing the libraries of torch" "${ANYO_PYTHON_BIN}" -m pip install --no-compile \
    --constraint "${CACHE}/constraints.txt" "torch==${torch}"
}

# torch of the lock is built for CUDA 13; with an older driver it would silently run on the CPU
check_driver() {
  local driver
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || return 0
  [[ ${driver%%.*} =~ ^[0-9]+$ ]] && ((${driver%%.*} < 580)) || return 0
  say "warning: the NVIDIA driver ${driver} is older than 580, which torch ${torch} (CUDA 13) needs: the GPU will not be used; update the driver"
}

mkdir -p "${CACHE}"
if command -v flock >/dev/null; then
  exec 9>"${CACHE}/setup.lock"
  flock 9
fi

# A venv whose Python has gone or is out of range is rebuilt
if [[ -x ${ANYO_PYTHON_BIN} ]] && supported "${ANYO_PYTHON_BIN}"; then
  python=${ANYO_PYTHON_BIN}
else
  python=$(find_python)
fi
mode=$(torch_mode)
torch=$(lock_version torch)

if [[ ${mode} == image ]]; then
  found=$(dist_version "${python}" torch)
  [[ ${found%%+*} == "${torch}" ]] ||
    die "the image has torch ${found}, poetry.lock has ${torch}: match the FROM of the Dockerfile to poetry.lock"
fi

extra=()
[[ -z ${ANYO_LAUNCHERS:-} ]] || extra=(--with launchers)

has_extra() { [[ ${#extra[@]} -eq 0 ]] || dist_version "${python}" hydra-submitit-launcher >/dev/null; }

if [[ ${python} == "${ANYO_PYTHON_BIN}" && -f ${STAMP} && $(<"${STAMP}") == "$(fingerprint)" ]] && has_extra; then
  ${quiet} || say "nothing changed (${ANYO_VENV}, torch: ${mode})"
  exit 0
fi

start=${SECONDS}
: >"${LOG}"
if [[ ${python} != "${ANYO_PYTHON_BIN}" ]]; then
  [[ ! -e ${ANYO_VENV} || -f ${ANYO_VENV}/pyvenv.cfg ]] || die "${ANYO_VENV} is not a virtual environment: move it away or change ANYO_VENV"
  say "creating the virtual environment ($("${python}" --version))"
  venv_options=(--clear)
  [[ ${mode} != image ]] || venv_options+=(--system-site-packages)
  logged "creating the virtual environment" "${python}" -m venv "${venv_options[@]}" "${ANYO_VENV}"
fi
rm -f "${STAMP}"
"${ANYO_PYTHON_BIN}" -c 'import pip' 2>/dev/null || logged "bootstrapping pip" "${ANYO_PYTHON_BIN}" -m ensurepip

say "installing dependencies (torch ${torch}: ${mode})"
torch_job=
if [[ ${mode} == cuda ]]; then
  check_driver
else
  set -m
  install_torch >"${TORCH_LOG}" 2>&1 </dev/null &
  torch_job=${!}
  set +m
fi

poetry=$(find_poetry)
export VIRTUAL_ENV=${ANYO_VENV} POETRY_NO_INTERACTION=1 PIP_DISABLE_PIP_VERSION_CHECK=1
POETRY_PYPI_MIRROR_URL=${POETRY_PYPI_MIRROR_URL:-$(pip_index)}
export POETRY_PYPI_MIRROR_URL
unset CONDA_PREFIX CONDA_DEFAULT_ENV PYTHONHOME
if [[ ${mode} == cuda ]]; then groups=(--with gpu); else groups=(--without torch); fi
logged "poetry install" "${poetry}" install "${groups[@]}" ${extra[@]+"${extra[@]}"}
[[ -e ${ANYO_VENV}/bin/poetry ]] || ln -s "${poetry}" "${ANYO_VENV}/bin/poetry"

if [[ -n ${torch_job} ]]; then
  wait "${torch_job}" || {
    tail -n 15 "${TORCH_LOG}" >&2
    die "installing torch failed (full log: ${TORCH_LOG#"${ANYO_ROOT}/"})"
  }
  torch_job=
  [[ ${mode} != cpu ]] || complete_torch
fi
# An image also holds packages that this project does not use
[[ ${mode} == image ]] || logged "pip check" "${ANYO_PYTHON_BIN}" -m pip check

fingerprint >"${STAMP}"
say "done ($((SECONDS - start)) s, ${ANYO_VENV})"
