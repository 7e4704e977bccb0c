# Every target sets up what it needs (.venv) by itself.
PYTHON ?= python3
RUN ?= runs/quickstart
PORT ?= 5000
DATA ?= $(or $(SEP_DATA),../shared/data)/cifar10
BIN = .venv/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo audit-demo test lint on-ray quick stand-in test-gpu test-all faults bench gpu-kit gpu-proof docs ui format

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## the main job on generated images
	$(BIN)/python pipeline/run.py

audit-demo: .venv/installed  ## nine minutes of adversaries against the demo's release; again, and it tries those that are left
	@test -f runs/quickstart/protect/manifest.json || $(MAKE) demo
	$(BIN)/python pipeline/audit.py --run runs/quickstart --minutes 9 || [ $$? -eq 3 ]

test: .venv/installed  ## lint, types, import contracts, and the quick suite, beside what runs on one Ray cluster, which mostly waits
	$(MAKE) --jobs 2 on-ray lint quick

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

on-ray: .venv/installed
	$(BIN)/pytest -m "ray and not slow"

quick: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not ray and not slow"

stand-in: .venv/installed  ## the suite of sep beside a device that computes nothing, where one can be built: a minute and a half
	$(BIN)/pytest -m slow tests/system/test_without_values.py

test-gpu:  ## what only a GPU can get wrong, by any Python with torch and pytest: two minutes at most
	PYTHONPATH=$(CURDIR)/gpu-kit/wheels $(GPU_PYTHON) -m pytest tests/gpu --device cuda

test-all: test  ## and the slow proofs, faults among them
	$(BIN)/pytest -m "slow"

faults: .venv/installed  ## everything that kills, cuts short or refuses something, and the other slow proofs: half an hour
	$(BIN)/pytest -m "faults or slow"

bench: .venv/installed  ## gradients and images per second, memory: minutes, on a machine that does nothing else
	$(BIN)/python -m tests.benchmarks.bench

gpu-kit: .venv/installed  ## what a GPU machine without a network needs beside the tree: make gpu-kit DATA=folder, or DATA=--ray
	$(BIN)/python -m tests.benchmarks.gpu.kit $(DATA)

gpu-proof:  ## eight minutes of the proof on a GPU, from the bare tree: again until it ends with 0; PROOF="--out FOLDER ..."
	PYTHONUNBUFFERED=1 PYTHONPATH=$(CURDIR)/gpu-kit/wheels $(GPU_PYTHON) -m tests.benchmarks.gpu.proof $(PROOF)

docs: .venv/installed  ## write the generated pages and tables: configuration, results, performance, the README's three results
	$(BIN)/python -m tests.docs.configuration
	$(BIN)/python -m tests.benchmarks.publish all
	$(BIN)/python -m tests.benchmarks.bench table

ui: export RUN_FOLDER := $(value RUN)
ui: .venv/installed  ## MLflow on the run's database: make ui RUN="path" PORT=5000
	@$(BIN)/python pipeline/ui.py --run "$$RUN_FOLDER" --port $(PORT)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
