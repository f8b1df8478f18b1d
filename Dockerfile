# Experiment container. The sources are mounted at /workspace, never copied.
# The torch of the base image must be the one in poetry.lock (else env_shell/setup.sh stops).
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel

# The distribution, fixed by the tag of the base image, decides the versions of OS packages
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
    build-essential \
    ca-certificates \
    curl \
    git \
    python3-venv \
    tmux \
    && rm -rf /var/lib/apt/lists/*

# PEP 668 guards the system Python, hence a virtual environment for Poetry; versions as in env_shell/setup.sh.
RUN python3 -m venv /opt/poetry \
    && /opt/poetry/bin/pip install --no-cache-dir poetry==2.5.1 poetry-plugin-pypi-mirror==0.6.5

# The container runs as the calling user, so the venv and HOME are writable by anyone; they lie outside
# /workspace, away from the host's .venv. `poetry install` inside goes to env_shell/setup.sh, which keeps
# the image's torch.
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
