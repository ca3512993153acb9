# Two commands for a fresh Linux machine with Python 3.10 or newer: `make run` and `make test`. Each sets up .venv once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test files at a time: each keeps little more than one core busy. A file's tests stay together, since they share what was exported once.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: run test test-all lint bench clean

run: $(VENV)/.installed
	$(BIN)/resnet-export resnet20 --fp16 --output build/resnet20-fp16 --force
	$(BIN)/resnet-export resnet50 --fp16 --weights random --output build/resnet50-fp16 --force

test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench_export.py

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("resnet-export needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export]' --group dev
	@touch $@

clean:
	rm -rf build $(VENV)
