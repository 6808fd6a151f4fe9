# Every target creates the checkout's own .venv first; only Python 3.11+, git and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROWS ?=
ONLY ?=
# Parallel test processes, each with its own Kafka and PostgreSQL: more than processors, since they often wait.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 2 * (os.cpu_count() or 1) + 1))')
# make test: times the usual number of random histories of each model.
HISTORIES ?=
export HISTORIES
SECONDS ?= 60
SEED ?=
MINUTES ?=
ROUNDS ?=
# make fuzz: PostgreSQL's major version, and the only kind of change to make.
VERSION ?=
CHANGE ?=
SHRINK ?=
# make coverage: set to measure every test instead of those without servers.
SERVERS ?=
# make chaos: number of brokers, a violation to plant and find (or all), a results file, whether to write the report.
BROKERS ?=
PLANTED ?=
RESULTS ?=
REPORT ?=
# make fuzz ONLY=parsers: inputs per parser, sanitizers in the codec's build (make test, too), add findings to the corpora, a
# single input.
CASES ?=
SANITIZE ?=
KEEP ?=
INPUT ?=
# make fuzz: a fault of tests/fuzz/planted.py to find, or all.
PLANT ?=
# make model: a rule to leave out.
RULE ?=
# Tests and benchmarks start headrace a thousand times, and would compile its modules each time where no bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
STAMP := $(VENV)/.installed
FUZZER := $(VENV)/.fuzzer
FOREIGN := $(VENV)/.foreign

LOWEST := .venv-lowest

.PHONY: help demo test proofs docs reference lowest coverage lint bench fuzz types interop chaos faults model audit clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml infra/constraints.txt $(wildcard schemas/codec/extension/*.[ch])
	@command -v $(PYTHON) >/dev/null || { \
	  echo "headrace needs Python 3.11 or newer, and $(PYTHON) was not found: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "headrace needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot create a virtual environment: install its venv package, such as python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once: some 100 packages, and the codec is compiled; a minute or a few"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev]'
	@touch $@

$(FUZZER): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[fuzz]'
	@touch $@

$(FOREIGN): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[interop]'
	@touch $@

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*  ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-10s%s\n", $$1, $$2 }'

demo: $(STAMP)  ## run all migrations on real servers
	$(BIN)/headrace demo $(if $(ROWS),--rows $(ROWS))

test: $(STAMP)  ## run the tests on real servers, or with SANITIZE=1 the codec's on a build with sanitizers
	$(BIN)/python -m $(if $(SANITIZE),tests.schemas.codec.sanitized,pytest -n $(JOBS) --dist loadfile -m "not long")

proofs: $(STAMP)  ## run the long tests: kills at every point, switchovers, outages, every server version, models
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long

docs: $(STAMP)  ## make a site of the documents, which can be searched without a network, in build/site
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/site
	@echo build/site/index.html

reference: $(STAMP)  ## write the pages of docs/reference that are generated from the program
	$(BIN)/python -m tests.reference

$(LOWEST)/.installed: pyproject.toml tests/lowest_constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/lowest_constraints.txt -e '.[dev]'
	@touch $@

lowest: $(LOWEST)/.installed  ## run the tests without servers with the oldest packages that are accepted
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not stack" --deselect tests/test_audit.py

coverage: $(STAMP)  ## show how much of each subpackage the tests without servers execute, or with SERVERS=1 every test
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -n $(JOBS) --dist loadfile $(if $(SERVERS),,-m "not stack")
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m tests.executed

lint: $(STAMP)  ## check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.words

bench: $(STAMP)  ## measure speed and memory as ratios against peers
	$(BIN)/python -m tests.benchmarks $(if $(ROWS),--rows $(ROWS)) $(if $(ONLY),--only $(ONLY))

ifeq ($(filter-out tables,$(ONLY)),)
fuzz: $(STAMP)  ## fuzz tables for SECONDS or ROUNDS, or with ONLY=parsers (or one parser) for SECONDS or CASES
	$(BIN)/python -m tests.fuzz.tables --seconds $(SECONDS) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(VERSION),--version $(VERSION)) $(if $(CHANGE),--change $(CHANGE)) \
	  $(if $(SHRINK),--shrink) $(if $(PLANT),--plant $(PLANT)) --jobs $(JOBS)
else
fuzz: $(FUZZER)
	$(BIN)/python -m tests.fuzz.parsers $(if $(filter-out parsers,$(ONLY)),--only $(ONLY)) \
	  $(if $(CASES),--cases $(CASES),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SANITIZE),--sanitize) $(if $(KEEP),--keep) $(if $(INPUT),--input $(INPUT))
endif

types: $(STAMP)  ## compare values of every type in table and topic, on PostgreSQL VERSION
	$(BIN)/python -m tests.compare_types $(if $(VERSION),--version $(VERSION))

interop: $(FOREIGN)  ## let Kafka Connect, Flink, ClickHouse and kafkajs (ONLY one) read every type; WRITE=1 stores their answers
	$(BIN)/python -m tests.interop $(if $(ONLY),--only $(ONLY)) $(if $(WRITE),--write)

chaos: $(STAMP)  ## run the pipeline under load and faults, for MINUTES or ROUNDS, or ONLY=producer …; repeat a failure by SEED
	$(BIN)/python -m tests.chaos$(if $(ONLY),,.path) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(if $(BROKERS),--brokers $(BROKERS)) \
	  $(if $(PLANTED),--planted "$(PLANTED)") $(if $(RESULTS),--results $(RESULTS)) $(if $(REPORT),--report)

faults: $(STAMP)  ## reintroduce fixed faults of moving repositories, and check that tests find each
	$(BIN)/python -m tests.consumers.gitserver.faults

AUDIT := .venv-audit
WRITE ?=

$(AUDIT)/.installed: $(STAMP) tests/audit_constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/audit_constraints.txt \
	  pip-audit cyclonedx-bom
	@touch $@

audit: $(AUDIT)/.installed  ## check hashes of packages and jars, write an SBOM, list known vulnerabilities
	$(BIN)/python -m tests.audit --tools $(AUDIT)/bin $(if $(WRITE),--write)

model: $(STAMP)  ## verify the models of docs/explanation/models with SPIN (ONLY one, without RULE)
	$(BIN)/python -m tests.models $(if $(ONLY),--only $(ONLY)) $(if $(RULE),--rule $(RULE))

clean:  ## remove the files of the other targets
	rm -rf $(VENV) $(AUDIT) $(LOWEST) .fuzz build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	rm -f schemas/codec/_compiled.*.so schemas/codec/_compiled.*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
