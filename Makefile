# One command per chore. Each sets up what it needs: Python 3.11 to 3.13 and make are enough.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready
# Two files of tests at a time; a file stays with one process, which makes what its tests share once.
PYTEST := $(RUN) pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test results check lint types fast format clean

help:  ## list the chores
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "expected Python 3.11 to 3.13. Received: $$($(PYTHON) --version 2>&1). Choose one: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu install the package python3-venv."; exit 2; }
	@echo "Installing the versions of constraints.txt into $(VENV): about 2 GB on disk, some minutes."
	@$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(READY)  ## a phantom cohort through the whole line, in a few minutes
	$(RUN) femur_tf.demo --overwrite

test: $(READY)  ## all tests, slow ones too, with statement and branch coverage
	$(PYTEST) --cov --cov-report=term
	@$(RUN) coverage json --quiet -o .coverage.json && $(VENV)/bin/python -c \
	  'import json; t = json.load(open(".coverage.json"))["totals"]; print("coverage: statements {percent_statements_covered:.1f} %, branches {percent_branches_covered:.1f} %".format(**t))'

results: $(READY)  ## the shipped model on the test cases: make results DATA=DIR
	@test -n "$(DATA)" || { echo "expected DATA=DIR, the folder with images/ and masks/. Received: nothing."; exit 2; }
	$(RUN) benchmarks.results "$(if $(filter ~/%,$(firstword $(DATA))),$(patsubst ~/%,$(HOME)/%,$(DATA)),$(DATA))"

check: lint types fast  ## what to run before a commit

lint: $(READY)  ## style and likely bugs
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(READY)  ## strict types
	$(RUN) mypy

fast: $(READY)  ## the tests of under two minutes
	$(PYTEST) -m "not slow"

format: $(READY)  ## mend what lint can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## remove caches, builds and the demo's output; the environment stays
	rm -rf build dist demo htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
