# Everything sets itself up: `make demo` and `make test` work from a fresh clone with Python 3.11 or newer.

# The system's own Python if it will do: distributions build theirs with profile-guided optimization. One built by
# hand without it needs a third more time for all that is Python.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
  $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
  done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
LONG := tests/simulation tests/fuzz
MINUTES ?= 60
.DEFAULT_GOAL := help
# Hundreds of processes begin here, most of them daemons: compiling the source takes half of their start.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo test lint types unit bench chaos mutants soak wheel clean

help:
	@echo "make demo    a local cluster of six daemons, real files, a snapshot, a kill -9, everything verified"
	@echo "make test    all that CI runs: ruff, mypy, basedpyright, pytest"
	@echo "make lint    ruff check and ruff format --check"
	@echo "make types   mypy and basedpyright, both strict"
	@echo "make unit    the quick tests only (no daemon processes)"
	@echo "make bench   put, get and read_many beside the raw disk and the raw loopback"
	@echo "make chaos   kill and freeze daemons under load, then check every acknowledged write"
	@echo "make mutants plant bugs in a copy of the source, and see which check notices each"
	@echo "make soak    fresh seeds of everything for MINUTES=60: simulations, crash states, decoders, chaos"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove what the other targets made, .venv included"

demo: $(VENV)/installed
	@$(BIN)/blockstore demo

bench: $(VENV)/installed
	@$(BIN)/blockstore bench

chaos: $(VENV)/installed
	@$(BIN)/python -m chaos

mutants: $(VENV)/installed-dev
	@$(BIN)/python -m tests.mutants

soak: $(VENV)/installed-dev
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)

# --- checks: stop at the first that fails

# Tests of processes wait most of the time, the long ones compute: beside each other both processors are in use. Who
# computes yields.
test: lint
	@nice -n 19 $(BIN)/python -m pytest $(LONG) >$(VENV)/long.log 2>&1 & long=$$!; others=; \
	  trap 'kill $$long $$others 2>/dev/null' EXIT INT TERM; \
	  $(MAKE) --no-print-directory types || exit; \
	  echo "== pytest: tests/processes; beside it the others, what they say follows"; \
	  nice -n 10 $(BIN)/python -m pytest $(LONG:%=--ignore=%) --ignore=tests/processes >$(VENV)/others.log 2>&1 & \
	  others=$$!; \
	  $(BIN)/python -m pytest tests/processes; found=$$?; \
	  echo "== waiting for the others (tail -f $(VENV)/others.log)"; \
	  wait $$others || found=1; cat $(VENV)/others.log; \
	  echo "== waiting for $(LONG) (tail -f $(VENV)/long.log)"; \
	  wait $$long || found=1; trap - EXIT; cat $(VENV)/long.log; exit $$found

lint: $(VENV)/installed-dev
	@echo "== ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check --quiet .

types: $(VENV)/installed-dev
	@echo "== mypy --strict, basedpyright"
	@$(BIN)/basedpyright --level error & other=$$!; \
	  $(BIN)/mypy --no-error-summary; found=$$?; wait $$other && exit $$found

unit: $(VENV)/installed-dev
	@$(BIN)/python -m pytest --ignore tests/processes

wheel: $(VENV)/installed-dev
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# --- setting up: the stamps are older than pyproject.toml only when something in it changed

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "== installing blockstore into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "== installing blockstore and its development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "blockstore needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "== installing python3-venv"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
	  else \
	    echo "Python's venv module is missing; install it (Debian: apt-get install python3-venv) and run make again." >&2; \
	    exit 1; \
	  fi; }
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
