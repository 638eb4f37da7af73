# One word each. Everything sets up what it needs; what is there already is not made again.
#
#   make demo        run the first program in a machine of its own
#   make test        all tests (make test-unit, test-component, test-domain, test-security, test-rust: one ring)
#   make test-long   the tests that take minutes each
#   make check       linters, types, layers, licences (each has its own target, see below)
#   make bench       how fast, compared with what
#   make fuzz        throw bytes at devices and parsers (FUZZ_EXAMPLES=20000 each property, FUZZ_SECONDS=60 each target,
#                    FUZZ_TARGETS="tree share" only these; what each holds: docs/fuzzing.md)
#   make setup       everything the tests need, and nothing more
#   make fix         let the formatters write
#   make lock        take newer versions of the development tools and of the crates
#   make clean       remove what was made here (the cache of kernels stays)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules
# Rings and linters share one machine and one progress report: they run one after the other, whatever -j says.
.NOTPARALLEL:

SETUP := tools/setup
CARGO := tools/setup cargo
BIN := .venv/bin
PYTEST := $(BIN)/pytest
export FUZZ_EXAMPLES ?= 20000
FUZZ_SECONDS ?= 60
SHELL_FILES = $(shell git ls-files -- '*.sh' .ci/run tools guest bench fuzz | xargs -r grep -lE '^\#!.*\b(ba|da)?sh\b')
PYTHON_FILES := src tests tools

.PHONY: help demo setup test test-unit test-component test-domain test-security test-rust test-long \
        check check-setup ruff mypy pyright rustfmt clippy deny shellcheck layers bench fuzz fix lock clean

help:
	@sed -n 's/^#  *make/  make/p' Makefile

demo:
	@$(SETUP) demo
	@tools/demo

setup:
	@$(SETUP) test

# --- tests --------------------------------------------------------------------------------------------------

# One pytest for all rings, so that its summary counts everything; the cheap rings go first.
test: setup
	@echo "== cargo test"
	@nice -n 5 $(CARGO) test --locked --workspace --quiet
	@echo "== pytest: unit, component, domain, security"
	@$(PYTEST) tests/unit tests/component tests/domain tests/security

test-unit test-component test-domain test-security: test-%: setup
	@$(PYTEST) tests/$*

test-rust: setup
	@nice -n 5 $(CARGO) test --locked --workspace

test-long:
	@$(SETUP) long
	@$(PYTEST) -m long tests

# --- linters ------------------------------------------------------------------------------------------------

check: ruff mypy pyright rustfmt clippy deny shellcheck layers
	@echo "== all checks passed"

check-setup:
	@$(SETUP) check

ruff: check-setup
	@echo "== ruff"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

mypy: check-setup
	@echo "== mypy"
	@$(BIN)/mypy --strict $(PYTHON_FILES)

# basedpyright is pyright as a Python wheel with its own node: see pyproject.toml.
pyright: check-setup
	@echo "== pyright"
	@$(BIN)/basedpyright

rustfmt: check-setup
	@echo "== rustfmt"
	@$(CARGO) fmt --all --check

clippy: check-setup
	@echo "== clippy"
	@nice -n 5 $(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: check-setup
	@echo "== cargo deny"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(CARGO) deny --locked --log-level error check licenses bans sources

shellcheck: check-setup
	@echo "== shellcheck"
	@shellcheck --external-sources $(SHELL_FILES)

layers: check-setup
	@echo "== layers and style"
	@$(PYTEST) -q tests/unit/test_imports.py tests/unit/test_style.py

# --- the rest -----------------------------------------------------------------------------------------------

bench:
	@$(SETUP) bench
	@/usr/bin/python3 bench/run.py $(BENCH_ARGS)

# The properties that the tests hold for a hundred made-up inputs each, for very many; then the Rust devices and parsers,
# guided by what their code does with the bytes (cargo test throws some thousands at each, without a guide).
fuzz: check-setup
	@$(PYTEST) --hypothesis-profile=fuzz $$(git grep -l hypothesis -- 'tests/unit/test_*.py')
	@tools/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

fix: check-setup
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(CARGO) fmt --all

lock: check-setup
	@$(BIN)/python3 -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --upgrade --group dev --universal --generate-hashes --python-version 3.11 \
	    --no-header --no-emit-index-url --output-file tools/requirements.txt
	@$(CARGO) update

clean:
	@rm -rf build target .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find bin src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
