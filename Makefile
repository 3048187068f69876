# Every command of the project. `make demo` and `make test` set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
# Where PyTorch publishes its CPU builds; the plain package brings gigabytes of CUDA.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
READY := $(VENV)/.ready

.PHONY: help setup demo up test test-unit lint format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with everything; CUDA where a GPU is found, else CPU

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "expected $(PYTHON); name another Python 3.11 with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory torch-$$(if nvidia-smi -L >/dev/null 2>&1 || [ "$$(uname)" = Darwin ]; then echo default; else echo cpu; fi)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

.PHONY: torch-default torch-cpu
torch-default:
	$(BIN)/pip install --quiet 'torch==$(TORCH)'

torch-cpu:
	$(BIN)/pip install --quiet 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(BIN)/pip install --quiet --index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH)+cpu'

demo: $(READY)  ## train a small policy on addition through the whole platform; report in runs/demo
	$(BIN)/tba demo

up: $(READY)  ## start the platform on this machine and leave it running
	$(BIN)/tba up

test: $(READY)  ## every test: unit, integration on the real servers, end to end
	$(BIN)/pytest -n 2 -m "not e2e"
	$(BIN)/pytest -m e2e

test-unit: $(READY)  ## the tests that need no server
	$(BIN)/pytest -n 2 -m "not integration and not e2e"

lint: $(READY)  ## formatting, lint rules, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## put the code in form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## every benchmark; each prints a table and ends with one line of JSON
	@for bench in $$(ls tests/bench/*.py | xargs -n1 basename | sed 's/\.py$$//' | grep -v '^_'); do \
		echo "== $$bench"; $(BIN)/python -m tests.bench.$$bench || exit 1; done

clean:  ## remove what the commands above made
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
