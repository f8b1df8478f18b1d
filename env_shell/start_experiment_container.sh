#!/usr/bin/env bash
# Starts the experiment container and enters it; if it is already running, enters it once more.
#
#   env_shell/start_experiment_container.sh [COMMAND ARGUMENT...]     (default: bash)
#
# Environment variables (all optional)
#   ANYO_GPU=all|none|...  value for docker's --gpus (default: all if Docker has the NVIDIA runtime)
#   ANYO_DOCKER_ARGS=...   more arguments for docker run, split at spaces (e.g. "-v /datasets:/datasets:ro")
#   HF_TOKEN               passed on by name, so that its value is not on the command line
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly CONTAINER_NAME="anyo-experiment"
readonly IMAGE_NAME="anyo-ilora-dllm2rec:latest"
readonly HASH_LABEL="anyo.dockerfile"
readonly CONTAINER_STATE="${ANYO_ROOT}/.cache/container" # the container's venv and HOME; safe to delete

say() { printf 'container: %s\n' "$*" >&2; }

command -v docker >/dev/null || die "docker not found: install Docker Engine"
docker info >/dev/null 2>&1 || die "cannot reach docker: check that the daemon is running and that you may use it"

[[ $# -gt 0 ]] || set -- bash
terminal=(-i)
[[ ! -t 0 || ! -t 1 ]] || terminal=(-it)

if [[ $(docker container inspect --format '{{.State.Running}}' "${CONTAINER_NAME}" 2>/dev/null) == true ]]; then
  say "entering the running ${CONTAINER_NAME}"
  exec docker exec "${terminal[@]}" "${CONTAINER_NAME}" "$@"
fi

dockerfile_hash=$(git hash-object --no-filters "${ANYO_ROOT}/Dockerfile")
built_hash=$(docker image inspect --format "{{index .Config.Labels \"${HASH_LABEL}\"}}" "${IMAGE_NAME}" 2>/dev/null) || built_hash=
if [[ ${built_hash} != "${dockerfile_hash}" ]]; then
  say "building ${IMAGE_NAME}"
  docker build --label "${HASH_LABEL}=${dockerfile_hash}" -t "${IMAGE_NAME}" "${ANYO_ROOT}" >&2
fi

gpu=${ANYO_GPU:-}
if [[ -z ${gpu} ]]; then
  if docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
    gpu=all
  else
    gpu=none
    say "docker has no NVIDIA runtime: running without GPU (ANYO_GPU=all forces it)"
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
