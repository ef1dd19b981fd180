# make repro | make test | make check | make help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help install repro test test-fast check lint types arrows workflows sample clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## .venv with everything pinned in constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) isn't there: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,parquet,train,wandb,dev]'
	@touch $@

data/underlying.csv: data.dvc | $(INSTALLED)
	dvc pull --quiet data.dvc
	@touch $@

repro: $(INSTALLED) data/underlying.csv  ## install, pull the sample market, retrain through DVC, register, show the result
	dvc repro
	@python -m pipelines.summary

test: $(INSTALLED) data/underlying.csv  ## the whole suite (all but gpu)
	python -m pytest -m "not gpu" -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)

test-fast: $(INSTALLED)  ## what takes seconds
	python -m pytest -m "not gpu and not slow and not cloud and not real_data" -n 2 -q $(ARGS)

lint: $(INSTALLED)
	ruff check .
	ruff format --check .

types: $(INSTALLED)
	mypy

arrows: $(INSTALLED)
	lint-imports

workflows: $(INSTALLED)
	actionlint

check: lint types arrows workflows test  ## what CI runs

sample: $(INSTALLED)  ## make the sample market anew (deterministic)
	python -m pipelines.sample_market --out data --card docs/data-card-sample.md

clean:  ## remove what repro made (the store, MLflow and .venv stay)
	rm -rf artifacts
