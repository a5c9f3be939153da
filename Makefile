# Needs only Python 3.11+, git and make: the tools are installed into .venv the first time a target wants them.

.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# PYTHON=… chooses the interpreter; without it the first of these that is new enough is taken.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python)
# More for the commands: make test ARGS="-k order", make demo ARGS=--json
ARGS ?=

# The simulated Claude is on loopback: no proxy may stand between.
LOOPBACK := 127.0.0.1,localhost
comma := ,
export NO_PROXY := $(if $(NO_PROXY),$(NO_PROXY)$(comma))$(LOOPBACK)
export no_proxy := $(NO_PROXY)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/.run ## Show the line at work against a Claude on loopback (ARGS=--json, ARGS=--live)
	@$(BIN)/waitline demo $(ARGS)

.PHONY: demo-durable
demo-durable: $(VENV)/.run ## Kill a worker and the database while prompts wait: all are answered once
	@$(BIN)/python tools/demo_durable.py $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## Run the tests (ARGS="-k order" for some of them)
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: check
check: lint types contracts docs wheel-test mutants ## Run everything that continuous integration runs
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal --hypothesis-profile=ci

.PHONY: bench
bench: $(VENV)/.dev ## Measure beside other limiters and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation into site/, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: mutants
mutants: $(VENV)/.dev ## Break each law on purpose: the named test must fail
	@$(BIN)/python tools/mutants.py $(ARGS) -- --hypothesis-profile=mutants --timeout=20

.PHONY: faults
faults: $(VENV)/.dev ## Kill processes by the hundred and judge what is left (ARGS="--kills 1200 --seed 7")
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check style and formatting
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet

.PHONY: types
types: $(VENV)/.dev ## Check types, strictly
	@$(BIN)/mypy

.PHONY: contracts
contracts: $(VENV)/.dev ## Check that the imports point one way
	@$(BIN)/lint-imports --no-logo

.PHONY: wheel-test
wheel-test: $(VENV)/.dev ## Build the wheel and run the tests against it, away from the source
	@$(BIN)/python tools/wheel_test.py $(ARGS)

.PHONY: clean
clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$("$$python" --version)"; \
			rm -rf $(VENV); \
			"$$python" -m venv $(VENV) && $(PIP) install --upgrade 'pip>=25.1' && exit 0; \
			rm -rf $(VENV); \
			echo "error: $$python could not create a virtual environment (is its venv module installed?)" >&2; exit 1; \
		fi; \
	done; \
	echo "error: waitline needs Python 3.11 or newer, found none of: $(PYTHONS). Try: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.run: $(BIN)/python pyproject.toml
	@echo "Installing waitline into $(VENV)"
	@$(PIP) install --editable '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing the tools for development into $(VENV)"
	@$(PIP) install --group dev --group docs --group bench
	@touch $@
