# `make figures` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
SP_DATASET ?= digits
export SP_DATASET

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help figures test test-browser lab html paper bench results notebooks readme clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; takes a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test]'
	@touch $@

figures: $(READY) ## run every notebook (SP_DATASET=digits|mnist|fashion_mnist) and leave its figures in figures/
	@$(BIN)/python -m sp figures --dataset $(SP_DATASET)

test: $(READY) ## lint, unit tests, and the notebooks compared with their stored outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest tests
	@$(BIN)/python -m sp check-notebooks

test-browser: $(READY) ## the panels of notebook 05 in a real JupyterLab and Chromium
	@$(BIN)/python -m pytest tests/browser

lab: $(READY) ## JupyterLab in the environment
	@$(BIN)/jupyter lab notebooks

html: $(READY) ## every notebook as a page that needs no kernel, in build/html
	@$(BIN)/python -m sp html

paper: $(READY) ## five figures of several panels and three tables for a paper, from stored results, in build/paper
	@$(BIN)/python -m sp paper

bench: $(READY) ## measure time and memory of a step beside Adam, and what a sweep costs, on a quiet machine; kept in sp/bench.csv
	@$(BIN)/python -m sp bench

results: $(READY) ## every stored table behind notebooks 09 to 11, on MNIST (hours; goes on where it stopped; says first how long)
	@$(BIN)/python -m sp compare --dataset mnist
	@$(BIN)/python -m sp compare --dataset fashion_mnist --scenarios split5_class split5_domain permuted10 --seeds 5
	@$(BIN)/python -m sp recipes
	@$(BIN)/python -m sp figures --dataset mnist notebooks/09_comparison.ipynb notebooks/10_claims.ipynb notebooks/11_replay.ipynb

readme: $(READY) ## write the tables of the README, and the gallery in figures/, from the committed figures
	@$(BIN)/python -m sp readme

notebooks: $(READY) ## run every notebook afresh in place (default data), outputs stored for the tests
	@$(BIN)/python -m sp refresh

clean: ## remove the environment and everything that was built or computed
	rm -rf $(VENV) build .store .pytest_cache .ruff_cache .hypothesis *.egg-info
