#!/usr/bin/env bash
# 実験用コンテナを起動して中に入る。すでに動いていれば、そこへもう一つ入る。
#
#   env_shell/start_experiment_container.sh [コマンド 引数...]     （既定は bash）
#
# 環境変数（すべて任意）
#   ANYO_GPU=all|none|...  docker の --gpus に渡す値（既定は NVIDIA のランタイムがあれば all）
#   ANYO_DOCKER_ARGS=...   docker run に足す引数（例: "-v /datasets:/datasets:ro"。空白で区切る）
#   HF_TOKEN               あれば名前だけを渡す（値はコマンド行に出ない）
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly CONTAINER_NAME="anyo-experiment"
readonly IMAGE_NAME="anyo-ilora-dllm2rec:latest"
readonly HASH_LABEL="anyo.dockerfile"
readonly CONTAINER_STATE="${ANYO_ROOT}/.cache/container" # コンテナの仮想環境と HOME。消せば作り直される

say() { printf 'container: %s\n' "$*" >&2; }

command -v docker >/dev/null || die "docker が見つからない: Docker Engine を入れる"
docker info >/dev/null 2>&1 || die "docker に繋がらない: デーモンが動いていて、権限があることを確かめる"

[[ $# -gt 0 ]] || set -- bash
terminal=(-i)
[[ ! -t 0 || ! -t 1 ]] || terminal=(-it)

if [[ $(docker container inspect --format '{{.State.Running}}' "${CONTAINER_NAME}" 2>/dev/null) == true ]]; then
  say "動いている ${CONTAINER_NAME} に入る"
  exec docker exec "${terminal[@]}" "${CONTAINER_NAME}" "$@"
fi

# イメージがないか、Dockerfile が変わっていればビルド
dockerfile_hash=$(git hash-object --no-filters "${ANYO_ROOT}/Dockerfile")
built_hash=$(docker image inspect --format "{{index .Config.Labels \"${HASH_LABEL}\"}}" "${IMAGE_NAME}" 2>/dev/null) || built_hash=
if [[ ${built_hash} != "${dockerfile_hash}" ]]; then
  say "${IMAGE_NAME} をビルドする"
  docker build --label "${HASH_LABEL}=${dockerfile_hash}" -t "${IMAGE_NAME}" "${ANYO_ROOT}" >&2
fi

gpu=${ANYO_GPU:-}
if [[ -z ${gpu} ]]; then
  if docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
    gpu=all
  else
    gpu=none
    say "docker に NVIDIA のランタイムがないので GPU なしで動かす（あるなら ANYO_GPU=all）"
  fi
fi
options=()
[[ ${gpu} == none ]] || options+=(--gpus "${gpu}")
[[ -z ${HF_TOKEN:-} ]] || options+=(-e HF_TOKEN)
read -r -a extra <<<"${ANYO_DOCKER_ARGS:-}"

mkdir -p "${CONTAINER_STATE}/home"
exec docker run "${terminal[@]}" --rm \
  ${options[@]+"${options[@]}"} \
  --name "${CONTAINER_NAME}" \
  --user "$(id -u):$(id -g)" \
  --shm-size 8g \
  -v "${ANYO_ROOT}:/workspace" \
  -v "${CONTAINER_STATE}:/opt/anyo" \
  -w /workspace \
  ${extra[@]+"${extra[@]}"} \
  "${IMAGE_NAME}" \
  "$@"
