# syntax=docker/dockerfile:1
# Three images: `cpu` (the default), `cuda`, and `vllm` for the engine vllm on GPUs.
#
# The versions of all libraries are in deploy/image, with hashes; `make lock` writes them. The base images are named by their tags, because
# these get security updates. A build that is to be repeated names them with the digest:
#   docker build --build-arg PYTHON_IMAGE=python:3.12-slim-trixie@sha256:<digest> .
ARG PYTHON_IMAGE=python:3.12-slim-trixie
ARG NODE_IMAGE=node:24-trixie-slim

# ---- build stages: their environment and the wheel are copied -----------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1

# The playground, built once for all images.
FROM ${NODE_IMAGE} AS web
WORKDIR /srv/steering-server/app/web
COPY app/web/package.json app/web/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY docs/openapi.json docs/glossary.md docs/latent_space.md docs/playground.md /srv/steering-server/docs/
COPY app/web ./
RUN npm run build

# The server without its dependencies.
FROM base AS wheel
WORKDIR /srv/steering-server
RUN python3 -m venv /opt/build
COPY pyproject.toml README.md LICENSE ./
COPY steering steering
COPY app app
COPY --from=web /srv/steering-server/app/static app/static
RUN --mount=type=cache,target=/var/cache/pip /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels .

# The dependencies, which do not change with the code.
FROM base AS libraries
WORKDIR /srv/requirements
RUN python3 -m venv /opt/venv
COPY deploy/image/requirements.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install --no-deps --require-hashes --requirement requirements.txt

# TORCH_INDEX: where CPU builds of torch come from; empty takes the default build of the package index, with the CUDA libraries.
FROM libraries AS libraries-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/image/requirements-cpu.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install --no-deps ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} --requirement requirements-cpu.txt

# The host provides the driver.
FROM libraries AS libraries-cuda
COPY deploy/image/requirements-cuda.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install --no-deps --require-hashes --requirement requirements-cuda.txt

FROM base AS libraries-vllm
WORKDIR /srv/requirements
RUN python3 -m venv /opt/venv
COPY deploy/image/requirements-vllm.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install --no-deps --require-hashes --requirement requirements-vllm.txt

# ---- runtime stages: no source, no root user ----------------------------------------------------------------------------
FROM base AS runtime
RUN groupadd --gid 10001 steering \
 && useradd --uid 10001 --gid steering --no-create-home --home-dir /var/lib/steering --shell /usr/sbin/nologin steering \
 && install --directory --owner steering --group steering /var/lib/steering
COPY deploy/image/health.sh /usr/local/lib/steering/health.sh
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/var/lib/steering \
    HF_HOME=/var/lib/steering/hub \
    STEERING_HOST=0.0.0.0 \
    STEERING_PORT=8000 \
    STEERING_DATABASE=sqlite:////var/lib/steering/steering.sqlite3 \
    STEERING_CACHE_DIR=/var/lib/steering/models
# The database and the converted model; everything else may be mounted read-only.
VOLUME /var/lib/steering
WORKDIR /var/lib/steering
EXPOSE 8000
# Loading a model takes seconds to minutes. Ready: the model is loaded and the store responds.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
  CMD ["bash", "/usr/local/lib/steering/health.sh"]
STOPSIGNAL SIGTERM
# The address is not loopback, so STEERING_API_KEYS or STEERING_API_KEYS_FILE is required.
CMD ["steer", "serve"]
LABEL org.opencontainers.image.title="steering-server" \
      org.opencontainers.image.description="Creates concept vectors and steers a language model with them while it generates." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12-slim-trixie"

# The compiler: forward passes are compiled on the host, for its CPU or by vLLM, and Triton compiles what launches its kernels.
FROM runtime AS runtime-compiler
# The base image pins the release of Debian.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

FROM runtime-compiler AS cuda
COPY --from=libraries-cuda /opt/venv /opt/venv
COPY --from=wheel /wheels /opt/wheels
RUN /opt/venv/bin/pip install --no-deps --no-cache-dir /opt/wheels/*.whl
ENV STEERING_DEVICE=cuda
USER 10001:10001
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM runtime-compiler AS vllm
COPY --from=libraries-vllm /opt/venv /opt/venv
COPY --from=wheel /wheels /opt/wheels
RUN /opt/venv/bin/pip install --no-deps --no-cache-dir /opt/wheels/*.whl
ENV STEERING_DEVICE=cuda STEERING_ENGINE=vllm
USER 10001:10001
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

FROM runtime-compiler AS cpu
COPY --from=libraries-cpu /opt/venv /opt/venv
COPY --from=wheel /wheels /opt/wheels
RUN /opt/venv/bin/pip install --no-deps --no-cache-dir /opt/wheels/*.whl
ENV STEERING_DEVICE=cpu
USER 10001:10001
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
