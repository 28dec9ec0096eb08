# Everything a fresh machine needs is Python 3.10 or newer, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed-demo  ## ask about a scene that the model has not seen
	$(BIN)/python examples/ask_scene.py

test: $(VENV)/.installed-dev  ## install and run all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## measure against the dense form of the published algorithm
	$(BIN)/python benchmarks/run.py

$(VENV)/.installed-%: pyproject.toml constraints.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extra $*
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
