# make train   sets up .venv and trains the digits; make test   sets up .venv and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# with jax[cuda] where there is an NVIDIA GPU
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
EXTRA := $(if $(GPU),[cuda],)
comma := ,
DEV_EXTRA := $(if $(GPU),[cuda$(comma)dev],[dev])
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: train test lint clean

train: $(VENV)/installed
	$(BIN)/python main.py --workdir runs/digits --config experiments/digits.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one as in: make train PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: Python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV); a minute or so"
	@$(PIP) -e ".$(EXTRA)"
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), with the tools of the tests; a minute or so"
	@$(PIP) -e ".$(DEV_EXTRA)"
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV)
