# Everything a fresh machine needs is python3 (>= 3.11, with venv) and make. Nothing is compiled.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= outputs

SEED   ?= 1
FAULTS ?= 24

.PHONY: demo test test-slow test-jobs chaos test-gpu triton lint types check ui clean lock

demo: $(STAMP)  ## train the demo ladder on real text, fit its scaling curve, write the report
	$(BIN)/gopher launch sweep=demo output_root=$(OUT)
	$(BIN)/gopher fit sweep=demo output_root=$(OUT)
	$(BIN)/gopher report sweep=demo output_root=$(OUT)

test: $(STAMP) lint types  ## what CI runs
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## longer trainings, whole-demo equality, coverage studies
	$(BIN)/python -m pytest -q -m "slow" --timeout 3000

# Beside the environment and not in it: with these packages every Ray opens ports for metrics to the whole network.
test-jobs: $(STAMP)  ## detached launches on a real Ray job server, whose packages (50 MB) are put beside the environment
	@export PYTHONPATH="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib", vars={"base": "$(CURDIR)/$(VENV)/jobs"}))')"; \
	$(BIN)/pip install -q --disable-pip-version-check --prefix $(VENV)/jobs "ray[default]==$$(sed -n 's/^ray==//p' requirements.lock)" && \
	$(BIN)/python -m pytest -q -m slow tests/test_ray_jobs.py

chaos: $(STAMP)  ## a sweep under FAULTS faults from outside and ten planted ones, drawn by SEED; ends with a table
	SEED=$(SEED) FAULTS=$(FAULTS) $(BIN)/python -m pytest -q -s -m chaos tests/chaos --timeout 3600

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -m "gpu" --timeout 3000

triton: $(STAMP)  ## the kernels' compiler (1 GB) beside a CPU build of torch, so that their tests run; CUDA builds bring their own
	$(BIN)/pip install -q --disable-pip-version-check --no-deps triton==3.9.0

lint: $(STAMP)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .

types: $(STAMP)
	$(BIN)/mypy

ui: $(STAMP)  ## MLflow on loopback, with the link to the finished dashboard
	$(BIN)/gopher ui sweep=demo output_root=$(OUT)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# The environment is rebuilt only when the lock's or pyproject's content changes: a new checkout with old file times stays cheap.
$(STAMP): requirements.lock pyproject.toml
	@sum=$$(cat requirements.lock pyproject.toml | cksum); \
	if [ -f $(STAMP) ] && [ "$$(cat $(STAMP))" = "$$sum" ]; then touch $(STAMP); exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gopher-sweeps needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); run make PYTHON=python3.11" >&2; exit 3; }; \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock && \
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e . && \
	echo "$$sum" > $(STAMP)

lock:  ## how requirements.lock is renewed: a fresh environment, frozen
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q torch==2.13.0
	.venv-lock/bin/pip install -q ".[dev,hub,evals,postgres]"
	.venv-lock/bin/pip freeze --exclude gopher-sweeps | sed 's/^torch==2.13.0+cpu/torch==2.13.0/' > requirements.lock.new
	rm -rf .venv-lock
	@echo "wrote requirements.lock.new; compare it with requirements.lock, keep the header, replace"
