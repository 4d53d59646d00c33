# Every target sets up what it needs: a virtual environment in .venv with detkd and its tools, made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-ultralytics test-export lint type bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Invert the built-in detector, distill a student on the images alone, compare: runs/demo/results.html
	$(BIN)/python -m detkd.demo

# One thread: the tests' tensors are small, and two threads on two busy cores wait for each other.
test test-slow test-ultralytics test-export: export OMP_NUM_THREADS = 1

test: $(READY)  ## Run the tests (minutes on two cores)
	$(BIN)/python -m pytest

test-slow: $(READY)  ## Run the slow tests
	$(BIN)/python -m pytest -m slow

# An environment of its own on top of .venv: the package is AGPL-3.0 and brings much that detkd does not need.
test-ultralytics: $(READY)  ## Run the tests of the ultralytics adapter, with the package
	$(PYTHON) -m venv .venv-ultralytics
	$(BIN)/python -c "import sysconfig, pathlib; print(sysconfig.get_paths()['purelib'], pathlib.Path('src').resolve(), sep='\n')" \
		> $$(.venv-ultralytics/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/detkd.pth
	.venv-ultralytics/bin/pip install --quiet --no-deps 'ultralytics-opencv-headless>=8.3.242,<8.5' opencv-python-headless
	.venv-ultralytics/bin/python -m pytest tests/detectors tests/test_catalogue.py -k 'ultralytics or yolov8n or yolo11n'

# An environment of its own on top of .venv, so that the other tests run without the packages, as most users do.
test-export: $(READY)  ## Run the tests of exported files, with onnx, onnxscript and onnxruntime
	$(PYTHON) -m venv .venv-export
	$(BIN)/python -c "import sysconfig, pathlib; print(sysconfig.get_paths()['purelib'], pathlib.Path('src').resolve(), sep='\n')" \
		> $$(.venv-export/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/detkd.pth
	.venv-export/bin/pip install --quiet 'onnx>=1.17' 'onnxscript>=0.5' 'onnxruntime>=1.20'
	.venv-export/bin/python -m pytest tests/detectors/deploy tests/integration/test_export_onnx.py

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## Check types
	$(BIN)/mypy

bench: $(READY)  ## Measure the cost of a step and of each distillation term: benchmarks/latest.json, latest-terms.json
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/terms.py

clean:  ## Remove the environment, caches and build outputs (not runs/)
	rm -rf $(VENV) .venv-ultralytics .venv-export build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
