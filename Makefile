# headrace: two commands. Each works from a clean clone with Python >= 3.11 and nothing else.
#
#   make serve                     start the server with the model inside the package; open the printed address
#   make serve ARGS="MODEL --port 8123"         any model folder or hub id, any flag of `headrace serve --help`
#   make test                      lint, types and the whole test suite
#   make test PYTEST="tests/core -k prefix"     a part of the suite, nothing else
#   make clean                     remove what these commands made
#
# PYTHON=/path/to/python3.13 chooses the interpreter; PIP_ARGS="..." is passed to every `pip install`.

SHELL := /bin/sh
.DEFAULT_GOAL := serve
.PHONY: serve test check clean

ARGS ?=
PIP_ARGS ?=
PYTEST ?=
# required: a machine without Chromium fails the test run instead of leaving the browser tests out
BROWSER ?= optional
# required: the same for Node and the packages of its clients
NODE ?= optional
# required: the same for nginx
PROXY ?= optional
# The newest interpreter on the path that will do; looked for once, and only when one is needed.
FOUND = $(eval FOUND := $$(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	"$$$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$$$name"; break; }; \
	done))$(FOUND)
PYTHON ?= $(FOUND)

BIN := .venv/bin
# A person watches the downloads; a log only gets the errors.
PIP = $(BIN)/python -m pip --disable-pip-version-check install $(shell [ -t 2 ] || echo -qq) $(PIP_ARGS)

# A virtual environment dies when its folder moves or its interpreter goes. It is used only if its own python still
# starts and says that it was made here; otherwise it is made again.
ifneq ($(shell $(BIN)/python -c 'print(open(".venv/home").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: .venv/home
endif

serve: .venv/serve.stamp
	@exec $(BIN)/headrace serve $(ARGS)

ifeq ($(strip $(PYTEST)),)
test: .venv/test.stamp check
	@if sh .ci/chromium; then :; \
	elif [ "$(BROWSER)" = required ]; then echo "make test: Chromium is required here" >&2; exit 1; \
	else export HEADRACE_NO_BROWSER=1; fi; \
	if sh .ci/node; then :; \
	elif [ "$(NODE)" = required ]; then echo "make test: Node is required here" >&2; exit 1; \
	else export HEADRACE_NO_NODE=1; fi; \
	if sh .ci/nginx; then :; \
	elif [ "$(PROXY)" = required ]; then echo "make test: nginx is required here" >&2; exit 1; \
	else export HEADRACE_NO_PROXY=1; fi; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4; status=$$?; \
	if [ -n "$$HEADRACE_NO_BROWSER" ]; then \
		echo "NOT RUN: the browser tests (tests/web). They need Debian's chromium and chromium-driver." >&2; fi; \
	if [ -n "$$HEADRACE_NO_NODE" ]; then \
		echo "NOT RUN: the tests of Node clients (tests/node). They need node 20 or newer, npm and its registry." >&2; fi; \
	if [ -n "$$HEADRACE_NO_PROXY" ]; then \
		echo "NOT RUN: the tests behind a proxy (tests/proxy). They need Debian's nginx and openssl." >&2; fi; \
	exit $$status
else
test: .venv/test.stamp
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q $(PYTEST)
endif

check: .venv/test.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@sh .ci/nsroot
	@$(BIN)/mypy .nsroot/headrace

.venv/home:
	@if [ -z "$(PYTHON)" ]; then \
		echo "headrace needs Python 3.11 or newer, and found none (looked for python3.13, python3.12, python3.11, python3)." >&2; \
		echo "Install one, or name it: make serve PYTHON=/path/to/python3" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "headrace needs Python 3.11 or newer; $(PYTHON) is not." >&2; exit 1; }
	@echo "making .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@printf '%s\n' "$(CURDIR)" > $@

.venv/serve.stamp: pyproject.toml .venv/home
	@echo "installing headrace (the first time takes a few minutes: torch is large)"
	@$(PIP) --editable .
	@touch $@

.venv/test.stamp: pyproject.toml .venv/home
	@echo "installing headrace with what its tests need (the first time takes a few minutes)"
	@$(PIP) --editable '.[test]'
	@sh .ci/agents $(BIN)/python $(shell [ -t 2 ] || echo -qq) $(PIP_ARGS)
	@touch $@ .venv/serve.stamp

clean:
	rm -rf .venv .nsroot build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/node/node_modules
