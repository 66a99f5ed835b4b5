# The verbs of this project. `make` alone lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Written last by `setup`; older than pyproject.toml or constraints.txt means: install again.
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs figures bench-loss bench-data bench-train bench-defaults bench-scratch \
	bench-durability bench-serve chaos constraints clean

help: ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make the virtual environment and install the project into it

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## See the whole thing work, on real data, in a few minutes
	@$(BIN)/likeness demo

test: $(INSTALLED) lint ## Lint, check types and import contracts, run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED) ## Lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Rewrite the documentation's tables that come from the code
	$(BIN)/python -m docs.generate

figures: $(INSTALLED) ## Draw the documentation's figures, with numbers that the real loss gave
	$(BIN)/python -m docs.figures

bench-loss: $(INSTALLED) ## Measure time and memory of the loss beside the alternatives: a quarter of an hour
	$(BIN)/python -m bench.loss

bench-data: $(INSTALLED) ## Measure validation, tokenizing and sampling of a million rows: ten minutes at most
	$(BIN)/python -m bench.data

bench-train: $(INSTALLED) ## Measure training beside sentence-transformers' trainer, and a step: half an hour
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench.train
	$(BIN)/python -m bench.train_step

bench-defaults: $(INSTALLED) ## Measure what `auto` stands for against its alternatives: half an hour
	$(BIN)/python -m bench.defaults

bench-scratch: $(INSTALLED) ## Train an encoder from scratch beside the one that comes along, on the demo's pairs
	$(BIN)/python -m bench.scratch

bench-serve: $(INSTALLED) ## Measure serving beside infinity, in an environment of its own: twenty minutes
	test -x build/infinity/bin/infinity_emb || { $(PYTHON) -m venv build/infinity && \
	  build/infinity/bin/pip install --quiet 'infinity-emb[torch,server]==0.0.78' 'torch==2.13.0'; }
	$(BIN)/python -m bench.serve

bench-durability: $(INSTALLED) ## Measure what it costs a training that nothing of it may be lost: a minute
	$(BIN)/python -m bench.durability

chaos: $(INSTALLED) ## Break everything on purpose, hundreds of times, and judge from outside: an hour and a quarter
	$(BIN)/python -m tests.chaos --production --controls

constraints: ## Pin what a fresh install of pyproject.toml gets today
	rm -rf build/pin && $(PYTHON) -m venv build/pin
	build/pin/bin/pip install --quiet '.[dev]'
	@# A local version such as +cpu says where a wheel came from; the pin must hold everywhere.
	build/pin/bin/pip freeze --exclude likeness | sed -e 's/+[a-z0-9.]*$$//' > constraints.txt
	rm -rf build/pin

clean: ## Remove the virtual environment and caches; data directories stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
