# Needs Python 3.11, 3.12 or 3.13 and make. Another interpreter: make test PYTHON=python3.12

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all test-lowest test-runtimes kotlin parity lint format docs web web-tests clean

# The first interpreter that runs (a pyenv shim may exist and not run), of a version below the given
# one, and able to make an environment.
find_python = $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, $(1)))' \
	2>/dev/null && echo "$$python" && break; done)

ifndef PYTHON
PYTHON := $(call find_python,14)
endif
# The lowest numpy that is supported has no wheels for Python 3.13.
ifndef LOWEST_PYTHON
LOWEST_PYTHON := $(call find_python,13)
endif

VENV := .venv
LOWEST_VENV := .venv-lowest
BUILD_FILES := setup.cfg setup.py
# A process more than there are cores, since some tests wait for other processes. The tests of one
# file share networks, so they stay together; files with few tests are not the last, as some are slow.
PYTEST_FLAGS ?= --numprocesses=$(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist=loadfile --no-loadscope-reorder

help:
	@echo "make demo         train, gate, calibrate, evaluate, export and time on digits (runs/demo)"
	@echo "make test         run the quick tests"
	@echo "make test-slow    run the slow tests too, all but those that take long"
	@echo "make test-all     run every test, those that take long or install packages among them"
	@echo "make test-lowest  run the quick tests on the lowest supported versions"
	@echo "make kotlin       install a Kotlin compiler, with which make test-all compiles examples/android"
	@echo "make test-runtimes compare files on several runtimes, and write docs/results/runtimes.md"
	@echo "make parity       compare with the authors' numbers, where ../shared/parity has them"
	@echo "make lint         check the code, its format and its types (ruff, mypy), and the CI workflow"
	@echo "make format       format the code"
	@echo "make web          build the page that routes in the browser (web/dist), which needs Node.js 20"
	@echo "make web-tests    build the page, and install the browser that its tests drive"
	@echo "make docs         build the documentation site (site/index.html)"
	@echo "make clean        remove the environments and what builds leave behind"

$(VENV)/installed: $(BUILD_FILES)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found; name one: make PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV) (TensorFlow is large: this takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --editable '.[detection,digits,jax,test]'
	@touch $@

# What only the documentation needs.
$(VENV)/docs: $(VENV)/installed
	@PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(LOWEST_VENV)/installed: $(BUILD_FILES) tests/lowest.txt
	@test -n "$(LOWEST_PYTHON)" || { echo "error: no Python 3.11 or 3.12 with venv found; name one: make LOWEST_PYTHON=..." >&2; exit 1; }
	@echo "Installing the lowest supported versions into $(LOWEST_VENV) (this takes minutes)"
	@rm -rf $(LOWEST_VENV)
	@$(LOWEST_PYTHON) -m venv $(LOWEST_VENV)
	@$(LOWEST_VENV)/bin/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(LOWEST_VENV)/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[detection,digits,test]'
	@touch $@

demo: $(VENV)/installed
	$(VENV)/bin/python recipes/demo.py --workdir=runs/demo

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m "not slow and not long" $(PYTEST_FLAGS)

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m "not long" $(PYTEST_FLAGS)

test-all: $(VENV)/installed web-tests
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

test-lowest: $(LOWEST_VENV)/installed
	$(LOWEST_VENV)/bin/python -m pytest -m "not slow and not long" $(PYTEST_FLAGS)

# From the npm registry; it needs npm, and Java to run.
kotlin:
	@mkdir -p build/kotlin
	npm install --prefix build/kotlin --no-audit --no-fund --no-save kotlin-compiler@2.4.20

# Each runtime is installed into build/runtimes. NEWEST=1 runs only the newest releases there are.
test-runtimes: $(VENV)/installed
	PYTHONPATH=tests TF_CPP_MIN_LOG_LEVEL=2 $(VENV)/bin/python -m runtimes $(if $(NEWEST),--newest)

parity: $(VENV)/installed
	$(VENV)/bin/python -m pytest tests/parity $(PYTEST_FLAGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@if command -v actionlint >/dev/null; then actionlint; fi

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

web/node_modules/installed: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "error: no npm found; install Node.js 20 or newer" >&2; exit 1; }
	@npm ci --prefix web --no-audit --no-fund --loglevel=error
	@touch $@

web: $(VENV)/installed web/node_modules/installed
	@node web/build.mjs
	@$(VENV)/bin/python web/export_example.py web/dist/example.tflite

# What the tests of the page need. Where there is no Node.js or no browser, they are skipped.
web-tests: $(VENV)/installed
	@$(MAKE) --no-print-directory web || echo "the page is not built: its tests in the browser are skipped"
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install --quiet --yes chromium; } \
		|| echo "no chromium found (apt-get install chromium): the page's tests in the browser are skipped"

docs: $(VENV)/docs
	$(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST_VENV) build dist site web/dist web/node_modules *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
