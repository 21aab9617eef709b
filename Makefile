# Everything a fresh machine needs is Python 3.10 or newer and make:
#   make demo    train a small detector on the embedded data and write a report
#   make test    lint, types, unit tests, doctests, README examples, and the losses with each implementation
#   make bench   every loss and assigner beside every installed package that has it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN_STAMP := $(VENV)/.installed-train
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet
OUT := runs/demo-$(shell date +%Y%m%d-%H%M%S)
PARTS := lint types pytest backends
# Two processes, each with whole test files in their order: files with few but slow tests would come last. ARGS="-k fcos" runs
# what it names in one.
ARGS := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# What every loss promises, for the losses that have kernels: `pytest` runs it with those of this machine, `backends` with the others.
PROMISES := tests/test_losses_*.py
FUSED := (focal or ce- or bce or qfl or vfl or dfl or l1 or mse or smooth or huber or giou or diou or ciou or eiou or siou) and not gaussian and not inner

# Threads that wait give their core away. Spinning, PyTorch's are several times slower beside any other busy process; a training
# that has the machine for itself is faster with them.
pytest backends bench bench-full: export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test bench bench-full install docs hooks format clean $(PARTS)
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install detloss with its train, dev and peers extras (the other targets do it when needed)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "detloss needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "could not create $(VENV) with '$(PYTHON) -m venv' (Debian: install python3-venv)" >&2; exit 1; }

$(TRAIN_STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "installing detloss[train] into $(VENV) (once, a few minutes)"
	@$(PIP) --editable '.[train]'
	@touch $@

$(STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "installing detloss[train,dev,peers] into $(VENV) (once, a few minutes)"
	@$(PIP) --editable '.[train,dev,peers]'
	@# The peers bring two builds of OpenCV; that of opencv-python needs libGL, which a fresh machine may lack.
	@$(PIP) --force-reinstall --no-deps opencv-python-headless
	@touch $@

demo: $(TRAIN_STAMP) ## train on the embedded data and write a report (OUT=folder to name the run folder)
	@$(BIN)/detloss train --out $(OUT)

test: $(STAMP) ## run every check: lint, types, unit tests, doctests, README examples
	@failed=; \
	for part in $(PARTS); do \
	  echo "== make $$part"; \
	  $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	if [ -n "$$failed" ]; then echo "make test: FAILED in:$$failed" >&2; exit 1; fi; \
	echo "make test: passed ($(PARTS))"

lint: $(STAMP) ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## mypy on src
	@$(BIN)/mypy

# As many threads as processes would wait for each other half of the time; tests of threads ask for them.
pytest backends: export OMP_NUM_THREADS = 1

pytest: $(STAMP) ## tests, doctests and README examples (ARGS="-k fcos" to choose)
	@$(BIN)/python -m pytest $(ARGS)

backends: $(STAMP) ## the losses that have kernels, by their formulas and by the Triton kernels in its interpreter
	@DETLOSS_KERNELS=reference $(BIN)/python -m pytest --numprocesses 2 -q $(PROMISES) tests/testing/test_battery.py -k "$(FUSED)"
	@if $(BIN)/python -c 'import triton' 2>/dev/null; then \
	  TRITON_INTERPRET=1 DETLOSS_KERNELS=triton $(BIN)/python -m pytest --numprocesses 2 -q -W ignore $(PROMISES) -k "$(FUSED)"; \
	else echo "triton is not installed on this machine: its kernels are left out"; fi

bench: $(STAMP) ## every loss and assigner beside every peer, quick sizes (ARGS of benchmarks/run.py in BENCH="--only focal")
	@$(BIN)/python benchmarks/run.py $(BENCH) $(if $(PUBLISH),--publish)

bench-full: $(STAMP) ## the same at the documented sizes; PUBLISH=1 renews the committed result, its page, plot and README lines
	@$(BIN)/python benchmarks/run.py --full $(BENCH) $(if $(PUBLISH),--publish)

format: $(STAMP) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.docs-installed ## write the catalogue and build the site in build/site, warnings as errors
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site: build/site/index.html"

$(VENV)/.docs-installed: $(STAMP)
	@echo "installing what builds the documentation into $(VENV) (once)"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[train,docs]'
	@touch $@

hooks: $(STAMP) ## install the pre-commit hooks
	@$(BIN)/pre-commit install

clean: ## remove .venv, caches and build results (runs/ stays)
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
