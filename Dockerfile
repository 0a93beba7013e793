# syntax=docker/dockerfile:1
# Two images: `cpu` (the default) and `cuda`, built with the targets of the Makefile.
ARG PYTHON_VERSION=3.12

# ---- build stages: their environment is copied ----------------------------------------------------------------------------
FROM python:${PYTHON_VERSION}-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /srv/steering-server

# The playground, built once for both images.
FROM node:24-trixie-slim AS web
WORKDIR /srv/steering-server/app/web
COPY app/web/package.json app/web/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY docs/openapi.json /srv/steering-server/docs/openapi.json
COPY app/web ./
RUN npm run build

FROM base AS build
# The base image pins the release of Debian.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml Makefile README.md LICENSE ./
COPY steering steering
COPY app app
COPY --from=web /srv/steering-server/app/static app/static

# TORCH_INDEX: an index with CPU builds of torch makes a much smaller image; empty selects torch's default build.
FROM build AS build-cpu
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/var/cache/pip \
    PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" make install VENV=/opt/venv "INSTALL=.[otel,postgres]"

# torch's default build for Linux contains the CUDA libraries; the host provides the driver.
FROM build AS build-cuda
RUN --mount=type=cache,target=/var/cache/pip make install VENV=/opt/venv "INSTALL=.[otel,postgres]"

# ---- runtime stages: no source, no root user ----------------------------------------------------------------------------
FROM base AS runtime
RUN groupadd --gid 10001 steering \
 && useradd --uid 10001 --gid steering --no-create-home --home-dir /var/lib/steering --shell /usr/sbin/nologin steering \
 && install --directory --owner steering --group steering /var/lib/steering
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
USER 10001:10001
# Loading a model takes seconds to minutes. Ready: the model is loaded and the store responds.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
# The address is not loopback, so STEERING_API_KEYS is required.
CMD ["steer", "serve"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/venv /opt/venv
ENV STEERING_DEVICE=cuda

# The compiler: forward passes are compiled for the CPU of the host.
FROM runtime AS cpu
USER 0:0
# The base image pins the release of Debian.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=build-cpu /opt/venv /opt/venv
ENV STEERING_DEVICE=cpu
