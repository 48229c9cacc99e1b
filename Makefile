# Everything runs from here on a machine with Python >= 3.11 and make. The virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MAKE_VENV = test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "needs Python 3.11 or later with venv (Debian: python3-venv)"; exit 1; }

.PHONY: quickstart test test-slow check format clean

quickstart: $(VENV)/.installed  ## train a small cascade on generated shapes and show its samples
	$(BIN)/cdmkit run recipes/quickstart.toml

test: check  ## all checks and the default tests, on all cores
	$(BIN)/pytest -n auto

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes
	$(BIN)/pytest -m slow --timeout 1200

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cdmkit validate recipes/*.toml
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
