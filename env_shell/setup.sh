#!/usr/bin/env bash
# まっさらな機械に実行環境を作る（CPU でも CUDA でも）。何度実行してもよく、変わりがなければすぐ終わる。
#
#   bash env_shell/setup.sh [--quiet]
#
# 環境変数（すべて任意）
#   ANYO_TORCH=cpu|cuda   torch の入れ方を自分で決める（既定は機械を見て決める）
#   ANYO_TORCH_INDEX=URL  CPU 版 torch の wheel を取る索引
#   ANYO_PYTHON=PATH      仮想環境の元にする Python（3.11〜3.13）
#   ANYO_POETRY=PATH      使う Poetry
#   ANYO_VENV=DIR         仮想環境の場所（既定は .venv）
#   POETRY_PYPI_MIRROR_URL=URL  Poetry が使う索引（既定は pip と同じもの）
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "${ANYO_ROOT}"

readonly POETRY_VERSION=2.5.1 MIRROR_PLUGIN_VERSION=0.6.5
readonly CACHE="${ANYO_ROOT}/.cache"
readonly LOG="${CACHE}/setup.log"
readonly STAMP="${ANYO_VENV}/.anyo-setup"

quiet=false
case "${1:-}" in
  '') ;;
  -q | --quiet) quiet=true ;;
  *) die "知らない引数 '$1'（使えるのは --quiet だけ）" ;;
esac

say() { printf 'setup: %s\n' "$*" >&2; }

# 出力は記録へ。失敗したときだけ末尾を見せる。
logged() {
  local what=$1
  shift
  printf '\n$ %s\n' "$*" >>"${LOG}"
  "$@" >>"${LOG}" 2>&1 </dev/null || {
    tail -n 15 "${LOG}" >&2
    die "${what} に失敗した（全文は ${LOG#"${ANYO_ROOT}/"}）"
  }
}

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
      die "ANYO_PYTHON=${ANYO_PYTHON} は使えない: venv と ensurepip のある Python 3.11〜3.13 を指す"
  done
  die "Python 3.11〜3.13 が見つからない: 入れる（Debian/Ubuntu は python3-venv も）か、ANYO_PYTHON で場所を示す"
}

dist_version() { "$1" -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$2" 2>/dev/null; }

lock_version() {
  "${python}" - "$1" <<'PY' || die "poetry.lock に $1 がない"
import sys, tomllib
with open("poetry.lock", "rb") as f:
    print(next(p["version"] for p in tomllib.load(f)["package"] if p["name"] == sys.argv[1]))
PY
}

# image: イメージの torch を使う / cuda: poetry.lock のまま / cpu: CPU 版を別に入れる
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
    *) die "ANYO_TORCH='${ANYO_TORCH}' は使えない: cpu か cuda にする（既定に任せるなら消す）" ;;
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
    [[ -x ${ANYO_POETRY} ]] || die "ANYO_POETRY=${ANYO_POETRY} は実行できない"
    echo "${ANYO_POETRY}"
    return
  fi
  # PATH の Poetry は、版が合い、ミラー用プラグインを持つときだけ使う
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
    say "Poetry ${POETRY_VERSION} を .cache/poetry に入れる"
    logged "Poetry 用の仮想環境の作成" "${python}" -m venv --clear "${own}"
    logged "Poetry の導入" "${own}/bin/python" -m pip install "poetry==${POETRY_VERSION}" \
      "poetry-plugin-pypi-mirror==${MIRROR_PLUGIN_VERSION}"
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

# torch の依存も poetry.lock の版に揃える
write_constraints() {
  "${ANYO_PYTHON_BIN}" - >"${CACHE}/constraints.txt" <<'PY'
import tomllib
with open("poetry.lock", "rb") as f:
    print("\n".join(f"{p['name']}=={p['version']}" for p in tomllib.load(f)["package"]))
PY
}

install_beside_torch() {
  local name specs=()
  for name in "$@"; do specs+=("${name}==$(lock_version "${name}")"); done
  logged "${*} の導入" "${ANYO_PYTHON_BIN}" -m pip install --no-deps "${specs[@]}"
}

mkdir -p "${CACHE}"
# 同時に呼ばれたら、先の者が終わるまで待つ
if command -v flock >/dev/null; then
  exec 9>"${CACHE}/setup.lock"
  flock 9
fi

# 生きている仮想環境があればその Python を、なければ機械の Python を使う
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
    die "イメージの torch は ${found}、poetry.lock は ${torch}: Dockerfile の FROM の版を poetry.lock に合わせる"
fi

if [[ ${python} == "${ANYO_PYTHON_BIN}" && -f ${STAMP} && $(<"${STAMP}") == "$(fingerprint)" ]]; then
  ${quiet} || say "変わりなし（${ANYO_VENV}、torch: ${mode}）"
  exit 0
fi

start=${SECONDS}
: >"${LOG}"
if [[ ${python} != "${ANYO_PYTHON_BIN}" ]]; then
  [[ ! -e ${ANYO_VENV} || -f ${ANYO_VENV}/pyvenv.cfg ]] || die "${ANYO_VENV} は仮想環境ではない: 退けるか ANYO_VENV を変える"
  say "仮想環境を作る（$("${python}" --version)）"
  venv_options=(--clear)
  [[ ${mode} != image ]] || venv_options+=(--system-site-packages)
  logged "仮想環境の作成" "${python}" -m venv "${venv_options[@]}" "${ANYO_VENV}"
fi
rm -f "${STAMP}"
"${ANYO_PYTHON_BIN}" -c 'import pip' 2>/dev/null || logged "pip の準備" "${ANYO_PYTHON_BIN}" -m ensurepip

poetry=$(find_poetry)
export VIRTUAL_ENV=${ANYO_VENV} POETRY_NO_INTERACTION=1 PIP_DISABLE_PIP_VERSION_CHECK=1
POETRY_PYPI_MIRROR_URL=${POETRY_PYPI_MIRROR_URL:-$(pip_index)}
export POETRY_PYPI_MIRROR_URL
unset CONDA_PREFIX CONDA_DEFAULT_ENV PYTHONHOME

say "依存を入れる（torch ${torch}: ${mode}）"
if [[ ${mode} == cuda ]]; then
  logged "poetry install" "${poetry}" install --compile --with gpu
else
  logged "poetry install" "${poetry}" install --compile --without torch
  if [[ ${mode} == cpu ]]; then
    write_constraints
    [[ -z ${ANYO_TORCH_INDEX:-} ]] || logged "ANYO_TORCH_INDEX からの torch の導入" \
      "${ANYO_PYTHON_BIN}" -m pip install --no-deps --index-url "${ANYO_TORCH_INDEX}" "torch==${torch}"
    logged "torch の導入" "${ANYO_PYTHON_BIN}" -m pip install --constraint "${CACHE}/constraints.txt" "torch==${torch}"
    install_beside_torch peft accelerate
  else
    install_beside_torch peft accelerate bitsandbytes
  fi
fi
# イメージには、この計画と関わりのないパッケージもあるので調べない
[[ ${mode} == image ]] || logged "pip check（依存の食い違いの検査）" "${ANYO_PYTHON_BIN}" -m pip check

fingerprint >"${STAMP}"
say "できた（$((SECONDS - start)) 秒、${ANYO_VENV}）"
