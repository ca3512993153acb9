# Two commands for a fresh Linux machine with Python 3.10 or newer: `make run` and `make test`. Each sets up .venv once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test files at a time: each keeps little more than one core busy. A file's tests stay together, since they share what was exported once.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: run test test-all quick parity lint bench strangers triton-server docs clean

run: $(VENV)/.installed
	$(BIN)/resnet-export resnet20 --fp16 --output build/resnet20-fp16 --force
	$(BIN)/resnet-export resnet50 --fp16 --weights random --output build/resnet50-fp16 --force

test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow" $(PARALLEL)
	$(MAKE) parity

test-all: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(PARALLEL)

# For daily work, three minutes: lint, and the tests of what changed since main, or of one room: make quick ROOM=lowering
quick: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(BIN)/python scripts/quick.py $(ROOM)

# Our own bundles, held to resnet-parity.toml by the command and by the pytest plugin; there are no other tests in build/.
parity: $(VENV)/.installed
	$(BIN)/resnet-export resnet20 --fp16 --quiet --output build/resnet20-fp16 --force
	$(BIN)/resnet-export resnet20 --int8 --quiet --output build/resnet20-int8 --force
	$(BIN)/resnet-deploy check
	$(BIN)/python -m pytest --resnet-config=resnet-parity.toml build

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench_export.py

# ONNX files of TensorFlow, ModelOpt, NNCF, PT2E and Neural Compressor for the slow tests, each made in an environment of its own: 4 GB, minutes.
strangers: $(VENV)/.installed
	$(BIN)/python scripts/make_strangers.py $(TOOLS)

# A Triton server that needs no GPU, for the slow tests: 600 MB in build/triton, half a minute.
triton-server: $(VENV)/.installed
	$(BIN)/python scripts/make_triton_server.py

# The site, in build/site: open build/site/index.html. Its packages are installed when it is first built.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("resnet-export needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export]' --group dev
	@touch $@

clean:
	rm -rf build $(VENV)
