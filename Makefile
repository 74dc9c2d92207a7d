# Everything runs in an environment of its own, made on first use and made anew when what it is made from changes.

PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
export MPLBACKEND ?= Agg

INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
ARVIZ1_VENV := .venv-arviz1
ARVIZ1_INSTALLED := $(ARVIZ1_VENV)/.installed
ARVIZ1_GROUPS := build/arviz1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-arviz1 run-arviz1 lint types bench format clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r name what; do \
	  printf '%-12s %s\n' "$$name" "$$what"; done
	@echo
	@echo "make test WORKERS=4 PYTEST_ARGS='-k em -x': processes, and options for pytest; make PYTHON=/path/to/python3.11 names the interpreter."

demo: $(INSTALLED) ## fit, compare and draw a first model; figures go to runs/demo
	$(VENV)/bin/python -m latentzoo demo --out runs/demo

test: $(INSTALLED) ## run the tests, the slow ones left out
	$(VENV)/bin/pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(INSTALLED) ## run the slow tests only
	$(VENV)/bin/pytest -m slow $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED) ## mend style and formatting
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# mypy cannot see through an editable install whose root is the package, so it reads a plain one.
# build/ goes first: setuptools would pack what an older build left in it.
types: $(INSTALLED) ## check the types of the installed package
	rm -rf build/lib build/types
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && $(abspath $(VENV))/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p latentzoo

bench: $(BENCH_INSTALLED) ## run the side-by-side benchmarks
	$(VENV)/bin/python tests/benchmarks/run.py

# ArviZ 1.x needs Python 3.12; the name may be on PATH and yet not run, so each candidate is tried.
test-arviz1: ## open the exported groups with ArviZ 1.x, in a Python 3.12 of its own
	@for python in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python3.12; do \
	  if "$$python" -c '' 2>/dev/null; then exec $(MAKE) --no-print-directory run-arviz1 PYTHON312="$$python"; fi; \
	done; \
	echo "test-arviz1: skipped for want of Python 3.12, which ArviZ 1.x needs"

run-arviz1: $(INSTALLED) $(ARVIZ1_INSTALLED)
	rm -rf $(ARVIZ1_GROUPS)
	mkdir -p $(ARVIZ1_GROUPS)
	$(VENV)/bin/python tests/arviz1/make_groups.py $(ARVIZ1_GROUPS)
	LATENTZOO_GROUPS=$(abspath $(ARVIZ1_GROUPS)) $(ARVIZ1_VENV)/bin/pytest tests/arviz1 --confcutdir=tests/arviz1 -p no:cacheprovider $(PYTEST_ARGS)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "latentzoo needs Python 3.11 or newer, and '$(PYTHON)' is not that, or not on PATH." >&2; \
	  echo "Install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt setuptools wheel
	$(VENV)/bin/pip install --quiet -c constraints.txt --no-build-isolation -e '.[test,dev]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(VENV)/bin/pip install --quiet -c constraints.txt --no-build-isolation -e '.[bench]'
	@touch $@

$(ARVIZ1_INSTALLED):
	$(PYTHON312) -m venv $(ARVIZ1_VENV)
	$(ARVIZ1_VENV)/bin/pip install --quiet 'arviz>=1,<2' numpy pytest
	@touch $@

clean: ## remove the environments, caches and build outputs
	rm -rf .venv $(ARVIZ1_VENV) build dist *.egg-info runs/demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
