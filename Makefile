# Slipway. `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CRDS := charts/slipway/templates/crds
BENCHMARKS ?= apiserver kube_runtime control_plane data_preparation training_overhead start_up evaluation compression drift

.PHONY: help setup demo test lint format bench control-plane crds chart-snapshots constraints clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## Make .venv and install everything, at the pinned versions

# torch goes first, alone and pinned: pip then takes a CPU build where it is set up to find one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Train, evaluate, serve and renew a small language model, through the whole system
	$(BIN)/python examples/demo

# Where nothing can be built, the tests that need a real control plane say that they were skipped, or fail if CI=true.
# Two processes: half of the time is waiting. tests/conftest.py says what shares one, tests/suite.py what is run again.
# TESTS: `make test TESTS="tests/kube tests/chart"` is the Kubernetes tier alone.
test: setup  ## All tests, or those in TESTS; tests/kube builds what it needs where Go is installed
	-@if command -v go >/dev/null; then $(MAKE) --no-print-directory control-plane; fi
	$(BIN)/python tests/suite.py --numprocesses 2 --dist loadscope --no-loadscope-reorder \
		--durations 40 --durations-min 8 $(TESTS)

control-plane: setup  ## Build etcd, Kubernetes, Helm, KubeRay and Kueue into the cache, once for each change of their pins
	$(BIN)/python -m slipway_local.kubernetes.build

lint: setup  ## Formatting, lint, types, import rules, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m slipway_api crds $(CRDS) --check

format: setup  ## Let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## Every benchmark, each printing its table
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

crds: setup  ## Write the CRDs that the chart ships
	$(BIN)/python -m slipway_api crds $(CRDS)

chart-snapshots: setup  ## Write what the chart renders and grants into tests/chart
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest -q tests/chart -k 'snapshot or exactly'

constraints: setup  ## Pin what is installed now
	(echo "# Versions that install together and pass 'pip check' (Python 3.11, Linux). Regenerate: make constraints"; \
	 $(BIN)/python -m pip freeze --exclude-editable) > constraints.txt

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
