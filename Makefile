# `make demo` and `make test` do everything from a bare clone: they need Python 3.11+, pip and make, nothing more.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS_DIR ?= models

.PHONY: help install demo test test-gpu test-reliability check bench format protos lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

# The environment is made again whenever what it should hold has changed. The Dockerfile runs the same with
# EXTRAS=server and EDITABLE empty.
EXTRAS ?= dev
EDITABLE ?= --editable

install: $(VENV)/.ready ## make the environment in .venv

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --disable-pip-version-check --constraint requirements.lock $(EDITABLE) '.[$(EXTRAS)]'
	touch $@

demo: $(VENV)/.ready ## MovieLens-100K to a running service: train, publish, serve, ask, measure
	$(BIN)/shortlist demo --models-dir $(MODELS_DIR)

test: $(VENV)/.ready ## the whole test suite
	$(BIN)/pytest

test-gpu: $(VENV)/.ready ## what only a GPU can show, on a machine that has one
	$(BIN)/pytest tests/gpu tests/unit/server/test_cuda_memory.py

test-reliability: $(VENV)/.ready ## faults, kills, noise and load for hours: the long form of what `make test` has in short
	$(BIN)/pytest tests/reliability -m ''

check: $(VENV)/.ready ## format, lint, types, stale generated code, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(PYTHON) protos/generate.sh --check

bench: $(VENV)/.ready ## the benchmarks that need nothing more, each beside a peer in the same run
	$(BIN)/python -m benchmarks --models-dir $(MODELS_DIR)

format: $(VENV)/.ready ## rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: ## generate the code beside the .proto files
	PYTHON=$(PYTHON) protos/generate.sh

# A lock is what a fresh install of the extras resolves to, torch held back: a newer one brings gigabytes of CUDA.
lock: ## pin the newest versions of everything
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/pip install --disable-pip-version-check torch==2.13.0
	$(VENV)-lock/bin/pip install --disable-pip-version-check --editable '.[dev]'
	{ grep '^#' requirements.lock; $(VENV)-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

clean: ## remove the environments, not the models or the data
	rm -rf $(VENV) .venv-protos .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
