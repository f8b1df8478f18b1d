# 実験用コンテナ。ソースはホストから /workspace にマウントする（COPY しない）。
# torch の版は poetry.lock と同じにする（違えば env_shell/setup.sh が止まる）。
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel

# OS のパッケージの版は、ベースイメージのタグで決まる配布物に任せる
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
    build-essential \
    ca-certificates \
    curl \
    git \
    python3-venv \
    && rm -rf /var/lib/apt/lists/*

# システムの Python は PEP 668 で守られているので、Poetry は専用の仮想環境に置く。
# 版は env_shell/setup.sh と同じにする。
RUN python3 -m venv /opt/poetry \
    && /opt/poetry/bin/pip install --no-cache-dir poetry==2.5.1 poetry-plugin-pypi-mirror==0.6.5

# 呼び出した利用者の権限で動くので、仮想環境と HOME は誰でも書ける場所に置く。
# /workspace の外なので、ホストの .venv とは混ざらない。
# 中の `poetry install` は、イメージの torch を残す env_shell/setup.sh に繋がる。
RUN mkdir -p /opt/anyo/home && chmod 1777 /opt/anyo /opt/anyo/home \
    && ln -s /workspace/env_shell/poetry_in_container.sh /usr/local/bin/poetry

ENV ANYO_POETRY=/opt/poetry/bin/poetry \
    ANYO_VENV=/opt/anyo/venv \
    HOME=/opt/anyo/home \
    PATH=/opt/anyo/venv/bin:$PATH \
    POETRY_VIRTUALENVS_IN_PROJECT=false \
    POETRY_VIRTUALENVS_OPTIONS_SYSTEM_SITE_PACKAGES=true \
    USER=anyo \
    VIRTUAL_ENV=/opt/anyo/venv

WORKDIR /workspace
CMD ["bash"]
