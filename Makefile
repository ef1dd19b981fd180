# make repro | make test | make check | make help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# .venv is made and kept up here; an environment named with VENV= is used as it is.
INSTALLED := $(if $(filter .venv,$(VENV)),.venv/.installed,$(BIN)/python)
# The native core of this checkout, made anew when its sources changed; STRIKEFORGE_WITHOUT_NATIVE=1 does without.
NATIVE := $(if $(STRIKEFORGE_WITHOUT_NATIVE),,build/native/.built)
NATIVE_SOURCES := $(shell find serving/native -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)
READY := $(INSTALLED) $(NATIVE)
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONHASHSEED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

# What is typed after these names, or stands in the environment as STRIKEFORGE_<name>, stays text on its whole way: make
# doesn't expand it (value, unexport); the shell and Hydra get its name, never the text (${oc.env:STRIKEFORGE_REASON}).
TYPED := MODEL VERSION TARGET PACKS TO REASON BY APPROVE_BY DRY_RUN STORE TRACKING SIGNING TRIALS A B OF ROOT RENEW INSTEAD_OF
keep_as_text = $(eval override export STRIKEFORGE_$(1) := $$(value $(1)))
$(foreach name,$(TYPED),$(if $(filter command,$(origin $(name))),$(call keep_as_text,$(name))))
unexport $(TYPED)
told = $${STRIKEFORGE_$(2):+'$(1)=$${oc.env:STRIKEFORGE_$(2)}'}
CHOSEN := $${STRIKEFORGE_SIGNING:+"signing=$${STRIKEFORGE_SIGNING}"}
STORES := $(call told,storage.url,STORE) $(call told,registry.tracking_uri,TRACKING) $(CHOSEN)
SAID := $(call told,reason,REASON) $(call told,by,BY) $(call told,dry_run,DRY_RUN) $(STORES)
MODEL_NAME := "$${STRIKEFORGE_MODEL:?must be given: make ... MODEL=pricing_lstm}"
TARGET_NAME := "$${STRIKEFORGE_TARGET:?must be given: make compile MODEL=... TARGET=trt_rtx_sm89_fp16}"

.PHONY: help install native wheel sanitize sanitize-address sanitize-thread compile repro test test-fast check lint types arrows workflows sample clean \
	servers sweep retrain promote rollback retire status history diff lineage verify reconcile refresh channel mlflow-server preflight \
	chaos-release \
	bench-accuracy bench-ablations bench-worlds bench-regimes bench-training bench-engines bench-options bench-host

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(READY)  ## .venv with everything pinned in constraints.txt, and the native core

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) isn't there: install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	STRIKEFORGE_WITHOUT_NATIVE=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[cpu,parquet,s3,gcs,azure,awskms,postgres,train,wandb,trt-rtx,dev]'
	$(BIN)/python -m pip check
	@rm -f build/native/.built
	@touch $@

native: $(INSTALLED) build/native/.built  ## the native core of this checkout, after a change of C++ (incremental)

# Where there is a ccache, what was compiled once isn't compiled again in another checkout.
CCACHE := $(shell command -v ccache)
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := true

# cmake_native FOLDER OPTIONS...: configured and compiled there, strictly.
define cmake_native
	@command -v c++ g++ clang++ >/dev/null || { echo "error: no C++ compiler: install GCC 12 or Clang 16, or say STRIKEFORGE_WITHOUT_NATIVE=1"; exit 1; }
	cmake -S serving/native -B $(1) -G Ninja --log-level=WARNING -DPython_EXECUTABLE="$$(command -v python)" \
		-Dnanobind_DIR="$$(python -m nanobind --cmake_dir)" $(if $(CCACHE),-DCMAKE_CXX_COMPILER_LAUNCHER=$(CCACHE)) $(2) >/dev/null
	cmake --build $(1)
endef

build/native/.built: $(NATIVE_SOURCES) | $(INSTALLED)
	$(call cmake_native,build/native)
	@cp build/native/_core.*so serving/native/ && rm -f serving/native/absent.txt
	@python -c 'from serving import native; reason = native.why_unavailable(); raise SystemExit(reason and "error: " + reason)'
	@touch $@

wheel: $(INSTALLED)  ## dist/strikeforge-*.whl for hosts: picks its instruction set at run time
	python -m build --wheel --no-isolation --outdir dist

# A copy of the tree holds the instrumented library, so nothing of the product can load another one.
sanitize: sanitize-address sanitize-thread  ## the native core's tests under address, undefined-behaviour and thread sanitizers

# The address sanitizer brings its own operator new, so what counts ours has nothing to count there. Threads: the tests
# that start some.
sanitize-address: SANITIZERS := address,undefined
sanitize-address: SANITIZED_TESTS := tests/serving/native tests/serving/test_repricing.py tests/serving/host/test_book.py \
	tests/serving/host/test_tick_features.py tests/serving/host/test_loop.py tests/serving/host/test_reference_loop.py tests/serving/host/test_risk_streams.py \
	tests/serving/feeds/test_frames.py tests/serving/feeds/test_replay.py --ignore=tests/serving/native/test_allocations.py
sanitize-address: OPTIONS := LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1
sanitize-thread: SANITIZERS := thread
sanitize-thread: SANITIZED_TESTS := tests/serving/native/test_extremes.py tests/serving/native/test_surface_net.py tests/serving/native/test_ring.py \
	tests/serving/host/test_loop_controls.py
sanitize-thread: OPTIONS := LD_PRELOAD="$$(c++ -print-file-name=libtsan.so)" \
	TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1

sanitize-address sanitize-thread: $(INSTALLED)
	$(call cmake_native,build/$@,-DSTRIKEFORGE_SANITIZE=$(SANITIZERS))
	@rm -rf build/$@/tree && mkdir build/$@/tree
	@tar --exclude=node_modules --exclude='_core.*' -cf - serving models pipelines benchmarks conf tests pyproject.toml \
		| tar -xf - -C build/$@/tree
	@cp build/$@/_core.*so build/$@/tree/serving/native/
	cd build/$@/tree && env OMP_NUM_THREADS=1 $(OPTIONS) setarch --addr-no-randomize \
		python -m pytest -q -p no:cacheprovider --capture=sys -m "not slow and not cloud" $(SANITIZED_TESTS) $(ARGS)

# The engines and libraries that benchmarks compare with.
$(BIN)/.bench: pyproject.toml constraints.txt | $(INSTALLED)
	python -m pip install --quiet --constraint constraints.txt openvino numba QuantLib vollib pyzmq
	@touch $@

compile: $(READY)  ## an engine pack of a version, or of the champion (docs/compile.md): MODEL= TARGET= [VERSION= STORE=]
	@python -m pipelines.compile model=$(MODEL_NAME) target=$(TARGET_NAME) $(call told,version,VERSION) $(call told,storage.url,STORE)

servers: tests/servers/node_modules/.installed  ## Azurite for the tests of the Azure store; the other servers are Python packages

tests/servers/node_modules/.installed: tests/servers/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/servers --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	else echo "note: no npm here, so the tests of the Azure store skip (Node 20 brings it)"; fi

data/underlying.csv: data.dvc | $(INSTALLED)
	dvc pull --quiet data.dvc
	@touch $@

repro: $(READY) data/underlying.csv  ## install, pull the sample market, retrain through DVC, register, show the result
	dvc repro
	@python -m pipelines.summary

# Python 3.11 traces lines at the cost of a third of a test's time, so only the first half is traced: it reaches what is
# asked alone. With ARGS (tests to run) nothing is traced, and none of them need be slow.
# pytest ends with 5 where it was given no test.
NONE_IS_FINE := $(if $(ARGS),|| test $$? = 5)
COVERAGE := $(if $(ARGS),,--cov --cov-report=term:skip-covered --cov-fail-under=90)

test: $(READY) data/underlying.csv servers  ## the whole suite (all but gpu) [ARGS=]
	python -m pytest -m "not gpu and not slow" -n 2 $(COVERAGE) $(ARGS) $(NONE_IS_FINE)
	python -m pytest -m "not gpu and slow" -n 2 $(ARGS) $(NONE_IS_FINE)

test-fast: $(READY)  ## what takes seconds
	python -m pytest -m "not gpu and not slow and not cloud and not real_data" -n 2 -q $(ARGS)

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	find serving/native -name '*.cpp' -o -name '*.hpp' | xargs clang-format --dry-run -Werror

types: $(INSTALLED)
	mypy

arrows: $(INSTALLED)
	lint-imports

workflows: $(INSTALLED)
	actionlint

check: lint types arrows workflows sanitize test  ## what CI runs

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

bench-engines: $(READY) $(BIN)/.bench  ## latency of every engine against its peers [ARGS=]
	python -m benchmarks.engines $(ARGS)

bench-options: $(READY) $(BIN)/.bench  ## options mathematics and chain repricing against their peers [ARGS=]
	python -m benchmarks.options $(ARGS)

bench-host: $(READY) $(BIN)/.bench  ## tick to order: strikeforge-host run itself, rings and their peers, size [ARGS=--data DIR]
	python -m benchmarks.host $(ARGS)

chaos-release: $(INSTALLED) servers  ## kills, power cuts, races and forgeries over every store [ARGS=]
	python -m benchmarks.chaos_release $(ARGS)

sample: $(INSTALLED)  ## make the sample market anew (deterministic)
	python -m pipelines.sample_market --out data --card docs/data-card-sample.md

sweep: $(INSTALLED) data/underlying.csv  ## search a model's settings (docs/sweeps.md): MODEL= [TRIALS=20 TRACKING=]
	@dvc repro features
	@python -m pipelines.sweep sweep=$(MODEL_NAME) $(call told,sweep.trials,TRIALS) \
		$(call told,registry.tracking_uri,TRACKING)

retrain: $(READY) data/underlying.csv  ## retrain through DVC and register: MODEL= [STORE= TRACKING=]
	@dvc repro "evaluate@"$(MODEL_NAME) "export@"$(MODEL_NAME)
	@python -m pipelines.register model=$(MODEL_NAME) $(STORES)
	@python -m pipelines.status model=$(MODEL_NAME) $(STORES)

promote: $(READY)  ## gate a version, make it champion: MODEL= VERSION= APPROVE_BY= [PACKS=DIR,DIR RENEW=true REASON= BY= DRY_RUN=true STORE= TRACKING= SIGNING=]
	@python -m pipelines.promote model=$(MODEL_NAME) $(call told,version,VERSION) $(call told,approve_by,APPROVE_BY) \
		$(call told,packs,PACKS) $(call told,renew,RENEW) $(call told,to,TO) $(SAID)

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
