# Everything people and continuous integration run. `make` alone lists the targets.
.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
# A Python to build .venv with; by default the first of these that is new enough.
PYTHON ?=
# More words for pytest: make test-fast ARGS="-k quota -x"
ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: .venv/dev ## make .venv with everything development needs

.PHONY: test
test: lint types .venv/dev ## check and test everything, real servers included, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-fast
test-fast: .venv/dev ## test without real servers: memory and fakeredis only
	$(BIN)/python -m pytest -m "not server and not slow" $(ARGS)

.PHONY: lint
lint: .venv/dev ## ruff, and the import contract between the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: types
types: .venv/dev ## mypy (strict) and basedpyright
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: bench
bench: .venv/dev ## the benchmarks, as ratios
	$(BIN)/python -m pytest tests/benchmarks $(ARGS)

# Each limiter it compares with gets an environment of its own, under .benchmarks.
.PHONY: bench-web
bench-web: .venv/dev ## requests per second of one route, behind this and other limiters
	$(BIN)/python -m tests.benchmarks.web $(ARGS)

.PHONY: bench-service
bench-service: .venv/dev ## decisions per second of the service, to a bare gRPC echo
	$(BIN)/python -m tests.benchmarks.service $(ARGS)

.PHONY: faults
faults: .venv/dev ## real faults under load: the tables of docs/reliability.md
	$(BIN)/python -m tests.faults

# Each library gets an environment of its own, under .benchmarks.
.PHONY: migration
migration: .venv/dev ## what docs/migration says of other libraries, against those libraries
	$(BIN)/python -m tests.migration $(ARGS)

# Only what the library itself needs, so that a fresh clone gets going quickly.
.PHONY: demo
demo: $(or $(wildcard .venv/dev),.venv/demo) ## see it work: quick start, six algorithms, waiting, several rules, HTTP
	$(BIN)/python -m docs.examples.demo

.PHONY: vectors
vectors: .venv/dev ## write the golden vectors anew
	$(BIN)/python -m tests.vectors.make

.PHONY: contract
contract: vectors ## write the vectors anew, and record this version of the contract
	$(BIN)/python -m throttled.contract $(ARGS)

.PHONY: figures
figures: .venv/dev ## draw the figures of the documents anew
	$(BIN)/python -m docs.figures.make

.PHONY: docs
docs: .venv/dev ## build the site of the documents into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n docs build/docs

.PHONY: linkcheck
linkcheck: .venv/dev ## look up where the documents link to, outside of them too
	$(BIN)/python -m sphinx -b linkcheck docs build/linkcheck

# An old generator, in an environment of its own: what a newer one makes needs newer packages, and
# those who use the service with other libraries on protobuf may not have them. Python 3.11 to 3.13.
.PHONY: proto
proto: .benchmarks/proto/done ## generate the stubs of the service anew
	.benchmarks/proto/bin/python -m grpc_tools.protoc \
	    -I . --python_out=. --pyi_out=. --grpc_python_out=. throttled/service/v1/throttled.proto

.PHONY: dist
dist: .venv/dev ## build the wheel and the source distribution into dist
	rm -rf dist
	$(BIN)/python -m build

# Environments of its own, which it takes away again.
.PHONY: check-dist
check-dist: .venv/dev ## try the wheel, each extra and the fast tests on every Python found
	$(BIN)/python -m tests.packaging $(ARGS)

.PHONY: clean
clean: ## remove .venv, caches and what was built
	rm -rf .venv .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that was interrupted is taken up again. What is
# installed as a link is not compiled by pip as a copy would be, but imports should be as quick.
.venv/dev: pyproject.toml | .venv/bin/python
	$(PIP) -e '.[dev]'
	@$(BIN)/python -m compileall -q throttled
	@touch $@

.benchmarks/proto/done: | .venv/bin/python
	$(BIN)/python -m venv --clear .benchmarks/proto
	.benchmarks/proto/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.66.2
	@touch $@

.venv/demo: pyproject.toml | .venv/bin/python
	$(PIP) -e '.[all]'
	@$(BIN)/python -m compileall -q throttled
	@touch $@

.venv/bin/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "making .venv with $$python"; \
	        rm -rf .venv; \
	        $$python -m venv .venv || { rm -rf .venv; exit 1; }; \
	        exit 0; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer among: $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
