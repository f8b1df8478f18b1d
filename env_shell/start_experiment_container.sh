#!/usr/bin/env bash
# Starts this checkout's experiment container and works in it. The container runs on when SSH is cut.
#
#   start_experiment_container.sh                       enter it (a tmux session that survives the connection)
#   start_experiment_container.sh COMMAND ARGUMENT...   run a command in it and wait for its end
#   start_experiment_container.sh -d COMMAND...         run it in the tmux session and come back at once
#   start_experiment_container.sh attach                look at that session (leave it with Ctrl-b d)
#   start_experiment_container.sh stop                  ask its runs to write their checkpoints, then stop it
#   start_experiment_container.sh --reset               stop it, and delete its environment and HOME
#
# Environment variables (all optional)
#   GPU_ID=0|0,1|all|none  which GPUs (default: all if there is an NVIDIA runtime)
#   ANYO_GPU=...           value for docker's --gpus as it is (e.g. device=GPU-uuid)
#   ANYO_NAME=...          suffix of the name: another container of the same checkout
#   ANYO_SHM=8g            shared memory, for data loaders
#   HF_HOME=...            Hugging Face cache of the host, mounted (default: ~/.cache/huggingface)
#   ANYO_DOCKER_ARGS=...   more arguments for docker run, split at spaces (e.g. "-v /datasets:/datasets:ro")
#   HF_TOKEN               passed on by name, so that its value is not on the command line
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

checkout=$(basename "${ANYO_ROOT}" | tr -c 'A-Za-z0-9_.\n' '-')
path_hash=$(printf '%s' "${ANYO_ROOT}" | git hash-object --stdin)
user=$(id -un | tr -c 'A-Za-z0-9_.\n' '-')
readonly CONTAINER_NAME="anyo-${user}-${checkout:0:24}-${path_hash:0:6}${ANYO_NAME:+-${ANYO_NAME}}"
readonly IMAGE_NAME="anyo-ilora-dllm2rec:latest"
readonly HASH_LABEL="anyo.dockerfile" ROOT_LABEL="anyo.checkout" SESSION="anyo"
readonly CONTAINER_STATE="${ANYO_ROOT}/.cache/container${ANYO_NAME:+-${ANYO_NAME}}" # venv and HOME; safe to delete
# What the container runs: a stop reaches every process in it, and waits for runs that write their checkpoints.
readonly KEEPER='stop() { kill -TERM -1; while grep -qs "^python" /proc/[0-9]*/comm; do sleep 1; done; exit 0; }
trap stop TERM; while :; do sleep 86400 & wait; done'

say() { printf 'container: %s\n' "$*" >&2; }
running() { [[ $(docker container inspect --format '{{.State.Running}}' "${CONTAINER_NAME}" 2>/dev/null) == true ]]; }
exists() { docker container inspect "${CONTAINER_NAME}" >/dev/null 2>&1; }

stop() {
  exists || return 0
  say "stopping ${CONTAINER_NAME}"
  docker stop -t 60 "${CONTAINER_NAME}" >/dev/null || true
  docker rm -f "${CONTAINER_NAME}" >/dev/null 2>&1 || true # --rm has removed it, unless it came from a crash
}

build() {
  local now built
  now=$(git hash-object --no-filters "${ANYO_ROOT}/Dockerfile")
  built=$(docker image inspect --format "{{index .Config.Labels \"${HASH_LABEL}\"}}" "${IMAGE_NAME}" 2>/dev/null) || built=
  [[ ${built} != "${now}" ]] || return 0
  say "building ${IMAGE_NAME}"
  docker build --label "${HASH_LABEL}=${now}" -t "${IMAGE_NAME}" "${ANYO_ROOT}" >&2
}

# Prints docker's options for the GPUs that are asked for, one a line.
gpu_options() {
  local gpu=${ANYO_GPU:-}
  case "${GPU_ID:-}" in
    '') ;;
    all | none) gpu=${GPU_ID} ;;
    *[!0-9,]*) die "GPU_ID='${GPU_ID}' is not valid: use numbers (0 or 0,1), all or none" ;;
    *) gpu="device=${GPU_ID}" ;;
  esac
  if [[ -z ${gpu} ]]; then
    gpu=all
    if ${podman}; then
      compgen -G '/etc/cdi/nvidia*' >/dev/null || compgen -G '/var/run/cdi/nvidia*' >/dev/null || gpu=none
    else
      docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q '"nvidia"' || gpu=none
    fi
    [[ ${gpu} == all ]] || say "docker has no NVIDIA runtime: running without GPU (ANYO_GPU=all forces it)"
  fi
  [[ ${gpu} != none ]] || return 0
  if ${podman}; then
    printf -- '--device\nnvidia.com/gpu=%s\n' "${gpu#device=}"
  elif [[ ${gpu} == *,* ]]; then
    printf -- '--gpus\n"%s"\n' "${gpu}" # docker splits at commas outside quotes
  else
    printf -- '--gpus\n%s\n' "${gpu}"
  fi
}

start() {
  local options=() gpus extra cache=${HF_HOME:-${HOME}/.cache/huggingface}
  build
  gpus=$(gpu_options)
  [[ -z ${gpus} ]] || mapfile -t options <<<"${gpus}"
  [[ -z ${HF_TOKEN:-} ]] || options+=(-e HF_TOKEN)
  ! ${podman} || options+=(--userns=keep-id --security-opt label=disable)
  read -r -a extra <<<"${ANYO_DOCKER_ARGS:-}"
  mkdir -p "${CONTAINER_STATE}/home" "${cache}" # made here, or docker would create them as root
  exists && docker rm -f "${CONTAINER_NAME}" >/dev/null
  say "starting ${CONTAINER_NAME}"
  docker run -d --rm --init \
    ${options[@]+"${options[@]}"} \
    --name "${CONTAINER_NAME}" \
    --hostname anyo \
    --label "${ROOT_LABEL}=${ANYO_ROOT}" \
    --user "$(id -u):$(id -g)" \
    --shm-size "${ANYO_SHM:-8g}" \
    -v "${ANYO_ROOT}:/workspace" \
    -v "${CONTAINER_STATE}:/opt/anyo" \
    -v "${cache}:/opt/huggingface" -e HF_HOME=/opt/huggingface \
    -w /workspace \
    ${extra[@]+"${extra[@]}"} \
    "${IMAGE_NAME}" \
    bash -c "${KEEPER}" >/dev/null
}

command -v docker >/dev/null || die "docker not found: install Docker Engine (or podman with its docker alias)"
docker info >/dev/null 2>&1 || die "cannot reach docker: check that the daemon is running and that you may use it"
podman=false
[[ $(docker --version 2>/dev/null) != *podman* ]] || podman=true
terminal=(-i)
[[ ! -t 0 || ! -t 1 ]] || terminal=(-it)

detached=false
case "${1:-}" in
  stop | --reset)
    [[ $# -eq 1 ]] || die "$1 takes no arguments"
    stop
    [[ $1 == stop ]] || rm -rf "${CONTAINER_STATE}"
    exit 0
    ;;
  attach)
    [[ $# -eq 1 ]] || die "attach takes no arguments"
    running || die "${CONTAINER_NAME} is not running: start it without arguments"
    exec docker exec -it "${CONTAINER_NAME}" tmux attach -t "${SESSION}"
    ;;
  -d)
    detached=true
    shift
    ;;
  -*) die "unknown argument '$1' (see the head of this script)" ;;
esac

if running; then
  owner=$(docker container inspect --format "{{index .Config.Labels \"${ROOT_LABEL}\"}}" "${CONTAINER_NAME}")
  [[ ${owner} == "${ANYO_ROOT}" ]] || die "${CONTAINER_NAME} belongs to ${owner}: set ANYO_NAME to another suffix"
  say "entering the running ${CONTAINER_NAME}"
else
  start
fi

if ${detached}; then
  [[ $# -eq 0 ]] || docker exec "${CONTAINER_NAME}" tmux new-session -d -s "${SESSION}" "$(printf '%q ' "$@"); exec bash"
  say "runs in the background: $0 attach"
elif [[ $# -gt 0 ]]; then
  exec docker exec "${terminal[@]}" "${CONTAINER_NAME}" "$@"
elif [[ ${terminal[0]} == -it ]]; then
  exec docker exec -it "${CONTAINER_NAME}" tmux new-session -A -s "${SESSION}"
else
  exec docker exec -i "${CONTAINER_NAME}" bash
fi
