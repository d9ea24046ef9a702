# Each target does its own set-up first; tools/setup.py keeps a second run fast. `make help` lists them.
#
#   PYTHON=…    the Python to use, as a command, a path or a version such as 3.13 (default: the first of python3,
#               python3.13, python3.12, python3.11 that is 3.11 or later)
#   VENV=…      the virtual environment (default: .venv)
#   SECONDS=…   make demo: seconds of load, after which it ends by itself
#   ARGS=…      more arguments for pytest, for make check and make test

VENV ?= .venv
ARGS ?=
PYTEST = $(VENV)/bin/pytest
EXTRAS = structlog json cli opentelemetry statsd
BENCH_PYTHONS = 3.11 3.13

# The tests import the installed package: nothing may put this folder on the import path.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Of the theme's makers, about a version of MkDocs that this does not use.
export NO_MKDOCS_2_WARNING = 1

# $(call setup,VENV,groups,more): set up an environment with the Python that $$python names.
setup = "$$python" tools/setup.py --venv $(1) $(addprefix --group ,$(2)) $(addprefix --extra ,$(EXTRAS)) $(3)
find_python = python=$$(PYTHON="$(PYTHON)" tools/python.sh)

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test check lint docs audit suite test-all bench transparency fuzz soak setup drawing clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: setup ## a web service under load, scraped by Prometheus; SECONDS=5 ends it after 5 s of load
	@exec $(VENV)/bin/python examples/demo $(if $(SECONDS),--seconds $(SECONDS))

# Not pytest --cov: the package's own pytest plugin imports it before pytest-cov would begin to look.
test: lint drawing ## everything: lint, all tests with branch coverage, the real Prometheus
	$(VENV)/bin/coverage erase
	COVERAGE_OF_WORKERS=1 $(VENV)/bin/coverage run --parallel-mode $(PYTEST) -n 2 --dist loadfile $(ARGS)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

check: setup ## the quick part of the tests
	$(PYTEST) -n 2 -m "not real and not slow" $(ARGS)

lint: setup ## ruff, mypy and bandit
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --strict examples tools
	$(VENV)/bin/bandit -q -c pyproject.toml -r asyncinspect_logging

docs: ## the docs as a site, in .cache/site
	@set -e; $(find_python); "$$python" tools/setup.py --venv .venv-docs --group docs
	.venv-docs/bin/python -m mkdocs build

# Asks PyPI's database of vulnerabilities about each package that is installed here. --strict: one that it does not know
# of is an error, or without an answer from the database all would seem well.
audit: ## known vulnerabilities of what the package and its tests need; takes the network
	@set -e; $(find_python); $(call setup,$(VENV),audit test lint)
	$(VENV)/bin/python -m pip freeze --exclude asyncinspect-logging > .cache/audit.txt
	$(VENV)/bin/python tools/audit.py $(VENV)/bin/pip-audit .cache/audit.txt

suite: setup drawing
	$(PYTEST) $(ARGS)

test-all: ## all tests on every Python of 3.11, 3.12 and 3.13 that exists
	@status=0; for python in $$(tools/python.sh all); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "== Python $$version"; \
	    $(MAKE) --no-print-directory suite PYTHON="$$python" VENV=.venv-$$version || status=1; \
	done; exit $$status

# benchmarks/run.py is run once by each Python, and keeps the others' columns of the file that --out names.
bench: ## the benchmarks, side by side on Python 3.11 and 3.13; writes benchmarks/RESULTS.md
	@set -e; pythons=; \
	for version in $(BENCH_PYTHONS); do \
	    python=$$(tools/python.sh $$version) || { echo "bench: left out"; continue; }; \
	    $(call setup,.venv-bench-$$version,bench); \
	    pythons="$$pythons .venv-bench-$$version/bin/python"; \
	done; \
	for python in $$pythons; do "$$python" benchmarks/run.py --out benchmarks/RESULTS.md; done; \
	for python in $$pythons; do "$$python" tools/figures.py; done

transparency: setup ## the test suites of other packages, with and without install()
	$(VENV)/bin/python benchmarks/transparency.py

fuzz: setup ## a million wrong inputs for everything that reads input; about half an hour
	$(VENV)/bin/python tests/fuzz $(ARGS)

# The report is written anew of the figures that are kept, those of `make bench` too.
soak: setup ## ten million spans while everything around goes wrong; into benchmarks/RESULTS.md; half an hour
	@version=$$($(VENV)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(VENV)/bin/python tests/soak --json benchmarks/soak-$$version.json $(ARGS)
	$(VENV)/bin/python benchmarks/report.py

setup:
	@set -e; $(find_python); $(call setup,$(VENV),test lint docs,--programs)

drawing:
	@set -e; $(find_python); $(call setup,$(VENV),test lint docs,--drawing)

clean: ## remove the virtual environments and everything else that is made here
	rm -rf .venv .venv-* .cache dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
