# Every target makes the checkout's own .venv first; nothing but Python 3.11+, git and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROWS ?=
ONLY ?=
# Test processes at a time; each has its own Kafka and PostgreSQL.
JOBS ?= 2
SECONDS ?= 60
SEED ?=
MINUTES ?=
ROUNDS ?=
# PostgreSQL's major version, and a kind of change that the fuzz of tables is to make alone.
VERSION ?=
CHANGE ?=
SHRINK ?=
# Of make chaos: brokers of the stack, a violation to plant and to find (or all), a file for what was seen, write the page from it.
BROKERS ?=
PLANTED ?=
RESULTS ?=
REPORT ?=
# Inputs of each parser; a build of the codec with sanitizers; add what a run found to the corpora; one input alone.
CASES ?=
SANITIZE ?=
KEEP ?=
INPUT ?=
# A fault of tests/fuzz/planted.py that the fuzz of tables is to find, or all.
PLANT ?=
# A rule of a model that is left out.
RULE ?=
STAMP := $(VENV)/.installed
FUZZER := $(VENV)/.fuzzer

.PHONY: help demo test lint bench fuzz types chaos faults model audit clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml infra/constraints.txt $(wildcard schemas/_codec*.[ch])
	@command -v $(PYTHON) >/dev/null || { \
	  echo "headrace needs Python 3.11 or newer; there is no $(PYTHON): make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "headrace needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv package, such as python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev]'
	@touch $@

$(FUZZER): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[fuzz]'
	@touch $@

help:  ## what there is
	@sed -nE 's/^([a-z]+):.*  ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-8s%s\n", $$1, $$2 }'

demo: $(STAMP)  ## the whole story on real servers
	$(BIN)/headrace demo $(if $(ROWS),--rows $(ROWS))

test: $(STAMP)  ## every test, on real servers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)  ## speed and memory, as ratios against peers
	$(BIN)/python -m tests.benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(ONLY),--only $(ONLY))

ifeq ($(filter-out tables,$(ONLY)),)
fuzz: $(STAMP)  ## random tables, for SECONDS or ROUNDS; ONLY=parsers, or one of tests/fuzz/parsers/targets: for SECONDS or CASES
	$(BIN)/python -m tests.fuzz.tables --seconds $(SECONDS) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(VERSION),--version $(VERSION)) $(if $(CHANGE),--change $(CHANGE)) \
	  $(if $(SHRINK),--shrink) $(if $(PLANT),--plant $(PLANT)) --jobs $(JOBS)
else
fuzz: $(FUZZER)
	$(BIN)/python -m tests.fuzz.parsers $(if $(filter-out parsers,$(ONLY)),--only $(ONLY)) \
	  $(if $(CASES),--cases $(CASES),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SANITIZE),--sanitize) $(if $(KEEP),--keep) $(if $(INPUT),--input $(INPUT))
endif

types: $(STAMP)  ## every type's values, as column and as key, in topic and table, on PostgreSQL VERSION
	$(BIN)/python -m tests.compare_types $(if $(VERSION),--version $(VERSION))

chaos: $(STAMP)  ## the whole path under load and faults, for MINUTES or ROUNDS; or ONLY=producer, switchovers …; a failure names its SEED
	$(BIN)/python -m tests.chaos$(if $(ONLY),,.path) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(if $(BROKERS),--brokers $(BROKERS)) \
	  $(if $(PLANTED),--planted "$(PLANTED)") $(if $(RESULTS),--results $(RESULTS)) $(if $(REPORT),--report)

faults: $(STAMP)  ## faults of moving repositories that were mended, put back: which kinds find each
	$(BIN)/python -m tests.consumers.gitserver.faults

AUDIT := .venv-audit
WRITE ?=

$(AUDIT)/.installed: $(STAMP) tests/audit_constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/audit_constraints.txt \
	  pip-audit cyclonedx-bom
	@touch $@

audit: $(AUDIT)/.installed  ## packages and jars against their hashes, an SBOM, known vulnerabilities where they can be had
	$(BIN)/python -m tests.audit --tools $(AUDIT)/bin $(if $(WRITE),--write)

model: $(STAMP)  ## verify the models of docs/explanation/models with SPIN (ONLY one, RULE left out alone)
	$(BIN)/python -m tests.models $(if $(ONLY),--only $(ONLY)) $(if $(RULE),--rule $(RULE))

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(AUDIT) .fuzz build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	rm -f schemas/_codec.*.so schemas/_codec.*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
