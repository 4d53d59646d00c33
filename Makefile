# Every target sets up what it needs: a virtual environment in .venv with detkd and its tools, made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint type bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Invert the built-in detector, distill a student on the images alone, compare: runs/demo/results.html
	$(BIN)/python -m detkd.demo

# One thread: the tests' tensors are small, and two threads on two busy cores wait for each other.
test test-slow: export OMP_NUM_THREADS = 1

test: $(READY)  ## Run the tests (minutes on two cores)
	$(BIN)/python -m pytest

test-slow: $(READY)  ## Run the slow tests
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## Check types
	$(BIN)/mypy

bench: $(READY)  ## Measure the cost of a step: benchmarks/latest.json
	$(BIN)/python benchmarks/bench.py

clean:  ## Remove the environment, caches and build outputs (not runs/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
