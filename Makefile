# Each target is enough by itself on a machine that has only Python (3.11 or newer, with venv) and make.
# Everything is installed into .venv; `make clean` removes that and what the tests left, never a run.
PYTHON ?= python3
RUNS ?= runs
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test docs clean
.DELETE_ON_ERROR:

run: $(INSTALLED)
	$(BIN)/regrow compare digits/vgg11 --out $(RUNS)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/pytest

# Runs the how-to pages' code; a warning ends it. The pages are at docs/built/index.html.
docs: $(INSTALLED)
	$(BIN)/sphinx-build --fail-on-warning --keep-going docs docs/built

# The stamp is touched last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regrow needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) dist docs/built docs/made .pytest_cache .ruff_cache .hypothesis
