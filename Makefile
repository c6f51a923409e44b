# Everything a developer does, each target with all of its set-up. `make help` lists them.
#
#   make test TORCH=torch==2.10.0 VENV=.venv-2.10     another torch, beside the first
#   make test JAIR_KERNELS_CUDA=0                      without the CUDA sources

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WHEELS ?= dist

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# torch first and no build isolation: an isolated build would fetch a torch of its own.
INSTALL := PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation
SOURCES := $(shell find csrc -type f -name '*.[ch]*') setup.py
FORMATTED = $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test bench bench-full bench-compare lint format wheel wheel-check sanitize aot gpu-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Settings: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH)"

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip "setuptools>=77" wheel ninja
	$(PIP) install $(TORCH)
	@touch $@

# What the extras in pyproject.toml list, and the package itself.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable ".[test,bench,lint]"
	@touch $@

# Object files are kept in build/, so an edit recompiles one file.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(INSTALL) --no-deps --editable .
	@touch $@

setup: $(VENV)/.built  ## virtual environment, torch, dependencies, compiled kernels

test: setup  ## all tests, one process a core
	$(PY) -m pytest --numprocesses auto --dist loadfile

bench: setup  ## benchmarks against eager PyTorch and torch.compile, and the report (under 10 minutes)
	$(PY) -m pytest benchmarks/ --benchmark-only
	$(PY) -m benchmarks.report

bench-full: setup  ## every shape
	$(PY) -m pytest benchmarks/ --benchmark-only --full
	$(PY) -m benchmarks.report

bench-compare: setup  ## the new run against the committed one; fails on a ratio that is 15 % worse
	$(PY) -m benchmarks.compare

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: setup  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

wheel: setup  ## one wheel for every Python >= 3.10 and torch >= 2.10, in dist/
	rm -rf build/lib* build/bdist* $(WHEELS)/jair_kernels-*.whl
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir $(WHEELS) .
	@ls $(WHEELS)/jair_kernels-*.whl

wheel-check: wheel  ## the wheel in an empty environment, away from the sources, without a compiler
	rm -rf build/empty
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip --disable-pip-version-check --quiet install $(TORCH)
	CC=false CXX=false build/empty/bin/python -m pip --disable-pip-version-check --quiet install \
		--only-binary :all: $(WHEELS)/jair_kernels-*.whl
	cd build/empty && env -u PYTHONPATH PATH=/nonexistent bin/python - < ../../tests/wheel_smoke.py
	cd build/empty && env -u PYTHONPATH PATH=/nonexistent bin/python -m jair_kernels --json

sanitize: setup  ## the CPU kernels under the address and undefined-behaviour sanitizers
	$(PY) -m tests.sanitize

aot: setup  ## compile Triton kernels and CUDA sources ahead of time, and check their resources
	$(PY) -m tests.aot_triton
	$(PY) -m tests.aot_cuda

gpu-check:  ## on a machine with a GPU and its own torch: build in place, test, benchmark, write results
	$(PYTHON) -m benchmarks.gpu_check

clean:  ## remove what the targets made, but for the virtual environment
	rm -rf build $(WHEELS) *.egg-info jair_kernels/_C.so .pytest_cache .mypy_cache .ruff_cache .benchmarks \
		$(VENV)/.built
