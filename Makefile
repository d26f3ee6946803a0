# Everything starts here: `make test`, `make ablation`. The first call makes
# .venv (a few minutes, needs the network); later calls install nothing.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test test-all faults check format goldens ablation clean

# The first interpreter that is new enough; or `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
READY := .venv/ready
STUDY ?= paper
WORKDIR ?= runs/$(STUDY)

help:
	@echo 'make test       set up, then the fast tests (minutes)'
	@echo 'make test-all   all tests'
	@echo 'make faults     kills and damage, many times, as a table (slow)'
	@echo 'make check      format, lint, types, fast tests: before a commit'
	@echo 'make format     let ruff rewrite the files'
	@echo 'make goldens    rewrite what is expected of presets and choices'
	@echo 'make ablation   set up, run the default study to its report'
	@echo 'make clean      remove .venv and caches, never results'

setup: $(READY)

# Machines without the ensurepip module lend their own pip to the new .venv.
$(READY): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || \
	  { echo 'error: Python 3.11 or newer is needed: make PYTHON=...'; exit 2; }
	@echo 'Setting up .venv once; this takes a few minutes ...'
	@$(PYTHON) -m venv .venv > .venv.log 2>&1 || \
	  $(PYTHON) -m venv --without-pip .venv || { cat .venv.log; exit 1; }
	@rm -f .venv.log
	@pip='$(BIN)/python -m pip'; \
	  $$pip --version > /dev/null 2>&1 || \
	    pip='$(PYTHON) -m pip --python $(BIN)/python'; \
	  $$pip install -qq --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -q -rs -n auto --dist loadfile -m 'not slow'

test-all: $(READY)
	$(BIN)/python -m pytest -q -rs -n auto --dist loadfile

faults: $(READY)
	$(BIN)/python -m tests.faults

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) --no-print-directory test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

goldens: $(READY)
	$(BIN)/python -m tests.test_config
	$(BIN)/python -m tests.test_axes
	$(BIN)/python -m tests.training.test_sharding

ablation: $(READY)
	@$(BIN)/python -m experiments.ablate --study=$(STUDY) \
	  --workdir=$(WORKDIR) --workers=2

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
