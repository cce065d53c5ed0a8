# `make demo` and `make test` are all a newcomer needs; each sets itself up in $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/emoji_clip
# Two processes: jax compiles on one core for most of a test. Tests of one file stay together.
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## install, train the emoji CLIP (minutes on 2 cores), say where its report is
	$(BIN)/vlalign train --run-dir $(RUN_DIR)
	@echo "The report: $(abspath $(RUN_DIR))/report.html"
	@echo "Now try:    $(BIN)/vlalign search $(RUN_DIR) \"a red heart\""

test: lint ## install with the dev extra; then lint, types, layers, sizes and all tests
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## lint, format, types, layers and sizes, without the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_sizes.py

format: $(VENV)/installed-dev ## rewrite the files in the house's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find vlalign configs benchmarks tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: nothing is installed again while pyproject.toml stays as it is.
$(VENV)/installed: pyproject.toml
	$(make-venv)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(make-venv)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

define make-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "vlalign needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
$(PYTHON) -m venv $(VENV)
endef
