# The two commands of a fresh machine are `make quickstart` and `make test`; everything else is for people who change the house.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that wait without spinning: on few or shared cores torch is several times faster so.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart install test test-all fix check clean

quickstart: $(VENV)/.quickstart  ## set up and boost a small multilingual sample with an embedded model
	$(BIN)/python examples/quickstart.py

install: $(VENV)/.dev  ## everything that tests and benchmarks need
	@echo "ready: source $(BIN)/activate"

test: $(VENV)/.dev  ## one small case of everything
	$(BIN)/python -m pytest

test-all: $(VENV)/.all  ## the long ones too: kills, hostile servers, DeepSpeed, Ray nodes, full published sets
	$(BIN)/python -m pytest -m "not gpu"

fix: $(VENV)/.dev  ## format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("midb needs Python 3.11 or newer; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[quickstart]'
	@touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,deepspeed,qlora,ray]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
