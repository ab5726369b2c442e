# Every target makes .venv and installs what it needs when that is absent.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench study tiny clean

help:  ## Show this help.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing Cobra, PyTorch and tools into $(VENV): some minutes, once.'
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## Fine-tune the tiny model on four-stage answers and score it on captions (about 3 minutes on 2 cores).
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)  ## Run the tests, up to four files at once.
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

soak: $(INSTALLED)  ## Run the long forms of the drills: many kills, large archives.
	$(BIN)/python -m pytest -m slow

bench: $(INSTALLED)  ## Measure speed, memory and disk against named peers, and write benchmarks/RESULTS.md (20 minutes on 2 cores).
	$(BIN)/python -m pip install --editable '.[dev,bench]'
	test -d runs/demo/cobra-tiny-cot || $(BIN)/python scripts/demo.py
	$(BIN)/python benchmarks/run_all.py

study: $(INSTALLED)  ## Train nine tiny models with and without reasoning, and say what it did (about 25 minutes on 2 cores).
	$(BIN)/python scripts/study.py --scenes 8000 --jobs 2

check: $(INSTALLED)  ## Lint, format and type checks.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tiny: $(INSTALLED)  ## Train again the cobra-tiny that ships in the package (about 20 minutes on 2 cores).
	$(BIN)/python scripts/make_tiny.py

clean:  ## Remove caches and build products; runs/, data/ and .venv stay.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
