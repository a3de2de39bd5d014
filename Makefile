# Targets run in .venv, which they make and keep up to date themselves.
#   make demo     the whole line on simulated scans: teachers, student, control, evaluation, ONNX, report
#   make test     every test, one process a core (PYTEST_ARGS="tests/house -q" for a part)
#   make notebooks   JupyterLab with the notebooks (the tests run them too); make strip takes their outputs away
#   make lint | types | bench | docs | clean
# PYTHON chooses the interpreter that .venv is made from (3.10 or later).

PYTHON ?= python3
PYTEST_ARGS ?= -q -n auto --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test notebooks strip lint types bench docs clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# The stamp is older than these files when what they ask for may not be installed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "medkd needs Python 3.10 or later, and $(PYTHON) is older; give another one: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) data/phantom/dataset.json
	$(BIN)/medkd run pipelines/phantom.yaml
	@echo "Open $(CURDIR)/runs/phantom/report.html"

# Simulated scans, the same for everyone; written once.
data/phantom/dataset.json: | $(STAMP)
	$(BIN)/medkd data phantom data/phantom

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

notebooks: $(VENV)/.notebooks
	cd notebooks && ../$(BIN)/jupyter lab

# Outputs of a run do not belong into git: they are large, and they differ from machine to machine.
strip: $(VENV)/.notebooks
	$(BIN)/jupyter nbconvert --clear-output --inplace notebooks/*.ipynb

$(VENV)/.notebooks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "No benchmarks yet."; exit 0; }; \
	  for file in benchmarks/*.py; do $(BIN)/python "$$file" || exit 1; done

docs:
	@ls docs/*.md

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find medkd tests -name __pycache__ -type d -prune -exec rm -rf {} +
