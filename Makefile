# Everything a fresh machine needs is Python 3.10 or newer, git and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# Workers of one thread each: more threads than cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: demo test lint docs bench leaderboard static test-newest test-matrix test-lmms test-vllm test-vllm-core test-browser test-browser-core fuzz ci-full clean

demo: $(VENV)/.installed-demo  ## ask about a scene that the model has not seen
	$(BIN)/python examples/ask_scene.py

test: $(VENV)/.installed-dev  ## install and run all tests
	$(PYTEST)

lint: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 tokenprune geollava
	$(BIN)/mypy --platform darwin tokenprune geollava

test-newest: $(VENV)/.installed-dev  ## the core on both ends of what transformers may be, and beyond
	$(BIN)/python tools/versions.py transformers --ends
	$(BIN)/python tools/versions.py transformers --newer

test-matrix: $(VENV)/.installed-dev  ## the core on every tested release of transformers and Triton
	$(BIN)/python tools/versions.py transformers
	$(BIN)/python tools/versions.py triton
	$(BIN)/python tools/versions.py transformers --newer
	$(BIN)/python tools/versions.py triton --newer

fuzz: $(VENV)/.installed-dev  ## mutated files for the readers and the commands, for SECONDS
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),90)

test-lmms: $(VENV)/.installed-dev  ## the plug-in inside lmms-eval itself
	$(BIN)/python tools/versions.py lmms-eval

test-vllm: $(VENV)/.installed-dev  ## the plug-in inside vLLM itself
	$(BIN)/python tools/vllm_tests.py

test-vllm-core: $(VENV)/.installed-dev  ## one host of it, and the HTTP server
	$(BIN)/python tools/vllm_tests.py --core

test-browser: $(VENV)/.installed-dev  ## the web page in headless Chromium
	$(BIN)/python tools/browser_tests.py

test-browser-core: $(VENV)/.installed-dev  ## one way through it, in about a minute
	$(BIN)/python tools/browser_tests.py --core

ci-full: lint test static docs wheels test-matrix test-lmms test-vllm test-browser fuzz demo  ## everything, once before a task is called done

docs: $(VENV)/.installed-dev  ## docs/_build/html, with every block of code and every notebook run
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	$(BIN)/python tools/doc_blocks.py

bench: $(VENV)/.installed-dev  ## measure against the dense form of the published algorithm
	$(BIN)/python benchmarks/run.py

leaderboard: $(VENV)/.installed-dev  ## docs/leaderboard.md and its plots, of committed rows
	$(BIN)/python -m benchmarks.leaderboard page

static: $(VENV)/.installed-dev  ## what kernels take of a GPU and ask of its memory, beside committed rows
	$(BIN)/python benchmarks/static.py

.PHONY: wheels
wheels: $(VENV)/.installed-dev  ## dist/: the distribution, checked and run in clean environments
	$(BIN)/python tools/release.py --out dist

$(VENV)/.installed-%: pyproject.toml constraints.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extra $*
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
