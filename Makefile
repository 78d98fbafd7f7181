# Everything starts here: `make demo` is the main job, `make test` the checks. Both set up what they need.
# `make check` is the quick part of the tests, `make test-all` adds the long ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# Two workers; the tests of a file stay together, because they share what they train.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: setup demo docs check test test-all lint types lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lightning_sora needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: setup  ## fit a VAE, fit a DiT on its latents, test, sample: 6 minutes on two quiet cores held to AVX2
	$(BIN)/python benchmarks/demo.py

docs: setup  ## the site of docs/, in build/site: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: setup lint types  ## what every edit should pass
	$(PYTEST) -m "not slow and not release" tests/contracts tests/unit tests/architecture

test: setup lint types  ## what every commit should pass
	$(PYTEST)

test-all: setup lint types  ## what every release should pass, and a change of the parts that `release` tests guard
	$(PYTEST) -m ""

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

lock: setup  ## resolve the lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--group dev --group docs pyproject.toml --all-extras -o requirements.lock

clean:
	rm -rf outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
