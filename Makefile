# Everything runs in an own virtual environment; only Python 3.11 and make are needed.
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/installed-$(shell cat pyproject.toml .ci/constraints.txt | cksum | cut -d' ' -f1)
export LESIONCAST_ROOT ?= $(CURDIR)/out
export RAY_AUTH_MODE ?= disabled

.PHONY: demo test lint install clean

demo: install  ## simulate, convert, train both stages, forecast, evaluate
	$(VENV)/bin/python jobs/demo.py --config jobs/configs/demo.yaml

test: lint  ## lint, types, tests
	$(VENV)/bin/python -m pytest

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(INSTALLED)

$(INSTALLED):
	@echo "Setting up $(VENV) (about 2 minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar on \
		--constraint .ci/constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar on \
		--constraint .ci/constraints.txt --editable ".[dev]"
	@rm -f $(VENV)/installed-* && touch $@

clean:
	rm -rf $(VENV) out
