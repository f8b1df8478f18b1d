# shellcheck shell=bash
# cmd/*.sh の共通部（source して使う）: リポジトリの根へ移り、環境を整え、Python を決める。
set -euo pipefail

# shellcheck source=env_shell/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env_shell/common.sh"
cd "${ANYO_ROOT}"
bash env_shell/setup.sh --quiet
export HF_HUB_DISABLE_TELEMETRY=1
