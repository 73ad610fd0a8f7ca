# `make figures` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
SP_DATASET ?= digits
export SP_DATASET

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DENDRITES_READY := $(VENV)/.dendrites
PIP := -m pip install --quiet --disable-pip-version-check -c requirements.lock
SITE_READY := $(VENV)/.site
# What a target needs: the environment, and the package of notebook 13 in it where its runs are made again or asked for.
ENVIRONMENT := $(READY) $(if $(filter-out 0,$(DENDRITES) $(FRESH)),$(DENDRITES_READY))

.DEFAULT_GOAL := help
.PHONY: help figures test lab site paper results bench gpu dendrites notebooks readme test-browser test-alone clean

help: ## this list
	@awk -F ':.*## ' '/^## /{print "\n" substr($$0, 4) ":"} /^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; takes a minute or two) ..."
	@$(BIN)/python $(PIP) -e '.[test]'
	@touch $@

# By hand, because it asks for torchvision, which it does not use here and which would bring another torch.
$(DENDRITES_READY): $(READY)
	@echo "Installing perforatedai into $(VENV) ..."
	@$(BIN)/python $(PIP) cryptography pyyaml requests safetensors
	@$(BIN)/python $(PIP) --no-deps perforatedai
	@touch $@

$(SITE_READY): $(READY)
	@echo "Installing the packages that build the site into $(VENV) ..."
	@$(BIN)/python $(PIP) -e '.[site]'
	@touch $@

## All of it
figures: $(ENVIRONMENT) ## run every notebook and write its figures to figures/ (SP_DATASET=digits|mnist|fashion_mnist; FRESH=1 recomputes all runs)
	@$(if $(filter-out 0,$(FRESH)),SP_FRESH=$(SP_DATASET)) $(BIN)/python -m sp figures --dataset $(SP_DATASET)
test: $(ENVIRONMENT) ## lint, unit tests, the notebooks against their stored outputs, and 20 committed runs, recomputed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal tests
	@$(BIN)/python -m pytest -n auto --dist loadfile --nbval --nbval-current-env notebooks
	@$(BIN)/python -m sp audit --sample 20

## Explore
lab: $(ENVIRONMENT) ## JupyterLab in the environment
	@$(BIN)/jupyter lab notebooks
site: $(SITE_READY) ## documents, notebooks and reference as pages that need neither kernel nor network, in build/site
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "Open build/site/index.html"

## Reproduce
paper: $(ENVIRONMENT) ## five multi-panel figures and three tables for a paper, from stored results, in build/paper
	@$(BIN)/python -m sp paper
results: $(ENVIRONMENT) ## every stored table behind notebooks 09 to 11, on MNIST (takes hours, says first how long; resumes where it stopped)
	@$(BIN)/python notebooks/studies comparison --dataset mnist
	@$(BIN)/python notebooks/studies comparison --dataset fashion_mnist --scenarios split5_class split5_domain permuted10
	@$(BIN)/python notebooks/studies recipes
	@$(BIN)/python -m sp figures --dataset mnist notebooks/09_comparison.ipynb notebooks/10_claims.ipynb notebooks/11_replay.ipynb
bench: $(ENVIRONMENT) ## measure time and memory of a step against Adam's, on an idle machine; writes notebooks/studies/bench.csv
	@$(BIN)/python notebooks/studies bench
gpu: $(ENVIRONMENT) ## conformance tests on an accelerator, and the time of a step against Adam's there, in build/on_a_gpu.csv
	@$(BIN)/python -m tests.on_a_gpu
dendrites: $(DENDRITES_READY) ## install the package of notebook 13, perforatedai, without torchvision (DENDRITES=1 does so for any target)

## Maintain
notebooks: $(ENVIRONMENT) ## rerun every notebook in place (default data), storing the outputs for the tests
	@$(BIN)/python -m sp refresh
readme: $(ENVIRONMENT) ## write the README's tables, and the pages of figures/ and notebooks/, from committed files
	@$(BIN)/python -m sp readme
test-browser: $(ENVIRONMENT) ## the panels of notebook 05 in a real JupyterLab and Chromium
	@$(BIN)/python -m pytest tests/browser
test-alone: ## test what `pip install .` installs, with torch alone, in a separate environment
	@rm -rf build/lib && $(PYTHON) -m venv --clear build/alone
	@build/alone/bin/python $(PIP) .
	@build/alone/bin/python -I tests/alone.py
clean: ## remove the environment and everything that was built or computed
	rm -rf $(VENV) build docs/reference .store .pytest_cache .ruff_cache .hypothesis *.egg-info
