# `make demo` and `make test` need python3 >= 3.11 with its venv module, and make; `make test` also openssl and, where
# there is no apt-get, nginx and nghttpd. Everything else goes into .venv and .peers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES = $(shell find src -name '*.py') src/tlsagent/py.typed pyproject.toml README.md LICENSE

# The steps of `make test` share the checkout and two of them measure time: one after the other.
.NOTPARALLEL:
.PHONY: demo test bench soak lint types imports tests peers wheel pythons pkcs11 docs clean

demo: $(READY)
	$(BIN)/tlsagent demo

test: lint types imports tests wheel pythons
	@echo "make test: everything passed"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

tests: $(READY) peers
	rm -f .coverage .coverage.*
	.ci/tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# nginx and nghttpd for tests/interop: those of the system, or Debian's packages unpacked into .peers. Cheap when done.
peers:
	.ci/peers

# Wheel and sdist, and a request by the wheel from a place where the checkout cannot be imported.
wheel: dist/.checked

dist/.checked: $(SOURCES) .ci/check_wheel.py $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python .ci/check_wheel.py dist
	touch $@

# The other interpreters that this release supports, as far as they are found.
pythons: $(READY)
	.ci/other_pythons

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "tlsagent needs Python 3.11 or later; say which: make PYTHON=/path/to/python3"; exit 1; }
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[cli,testing,speed]' --group test --group lint --group build
	touch $@

# Not part of `make test`: needs two quiet cores, nginx, wrk and h2load. Exit 1 if a bar is missed; see benchmarks/README.md.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --group benchmark
	$(BIN)/python -m benchmarks

# Not part of `make test`, which has a short form of it: 100,000 requests by each driver, some minutes.
SOAK ?= 100000
soak: $(READY)
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver threads
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver asyncio
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver uvloop
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver threads --http2
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver asyncio --http2
	$(BIN)/python -m tests.soak --requests $(SOAK) --driver uvloop --http2

# Not part of `make test`: needs SoftHSM, pkcs11-provider and openssl (docs/howto/pkcs11.md). Fails without them.
pkcs11: $(READY)
	$(BIN)/python -m pytest tests/pkcs11/tokens.py

# The page of options and defaults is written from the code.
docs: $(READY)
	$(BIN)/python docs/make_options.py

clean:
	rm -rf .venv .venv-3.* .peers dist build .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
