# `make` alone lists what there is. Everything happens in .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
.DEFAULT_GOAL := help
.PHONY: help setup demo picture bench test unit lint format lock clean

help: ## List what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tickpipe needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV), once (under a minute; versions and hashes from the lock files) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.installed ## Make the environment: .venv, with the versions and hashes of the lock files

demo: setup ## Live prices, simulated, from websocket to database, on the screen (Ctrl-C ends it)
	@$(BIN)/tickpipe up

picture: setup ## Make docs/demo.svg anew, from a real run of the demo (about 16 minutes)
	@$(BIN)/python docs/make_picture.py

lint: setup ## Style, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports --no-cache

$(VENV)/.bench: $(VENV)/.installed requirements-bench.lock
	@echo "Adding what tickpipe is measured against …"
	@$(PIP) install --require-hashes -r requirements-bench.lock
	@touch $@

bench: $(VENV)/.bench ## Measure against others at the same work (14 minutes; OPTIONS=--quick: 2)
	@$(BIN)/python -m benchmarks.run $(OPTIONS)
	@$(BIN)/python -m benchmarks.pages

test: lint ## Lint, types, import contracts and every test, on real servers that the tests start
	@$(BIN)/python -m pytest -n 2 --dist worksteal

unit: setup ## The unit tests alone: no servers, seconds
	@$(BIN)/python -m pytest tests/unit

format: setup ## Put the code in shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## Renew the lock files (needs uv)
	uv pip compile pyproject.toml --upgrade --universal --generate-hashes --python-version 3.11 --extra dashboard -o requirements.lock
	uv pip compile pyproject.toml --upgrade --universal --generate-hashes --python-version 3.11 --extra dashboard --group dev -c requirements.lock -o requirements-dev.lock
	uv pip compile pyproject.toml --upgrade --universal --generate-hashes --python-version 3.11 --extra dashboard --group bench -c requirements.lock -c requirements-dev.lock -o requirements-bench.lock

clean: ## Remove .venv, what npm installed, and caches (not your data)
	rm -rf $(VENV) tests/timescaledb/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis dist

chaos: setup ## Break everything for MINUTES (default 1) by the schedule of SEED, and compare with the simulator's journal
	@$(BIN)/python -m tests.chaos.run --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED))

soak: setup ## Break a producer's websocket every 20 s for MINUTES (default 4): does it come back each time?
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),4)
