# Two commands: `make train` (set up, then the main job) and `make test`. Both are safe to repeat.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PLUGINS = $(patsubst %/setup.cfg,%,$(wildcard plugins/*/setup.cfg))
RUN ?= runs/first
WORKERS ?= 2
export OMP_NUM_THREADS ?=
export HF_HUB_OFFLINE ?=

.PHONY: train test check lint types floors prove clean

$(VENV)/.train: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.train $(wildcard plugins/*/setup.cfg)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(PLUGINS:%=-e %)
	touch $@

train: $(VENV)/.train
	$(BIN)/tpo train --heads region,temporal,mask --output $(RUN) --resume

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile

prove: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n $(WORKERS) --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types floors test

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
