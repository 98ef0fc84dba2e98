# Everything runs in its own virtual environment; only Python 3.11 and make are needed.
PYTHON ?= python3.11
VENV := .venv
PINNED := $(shell cat pyproject.toml .ci/constraints.txt | cksum | cut -d' ' -f1)
UNCOMPILED := $(VENV)/uncompiled-$(PINNED)
INSTALLED := $(VENV)/installed-$(PINNED)
SERVED := $(VENV)/served-$(PINNED)
DEVELOPED := $(VENV)/developed-$(PINNED)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar on \
	--no-compile --constraint .ci/constraints.txt
# Compiles on all processors, where pip would compile on one. It leaves out packages that nothing here
# imports, and ignores errors, because some files are for other versions of Python.
COMPILE := $(VENV)/bin/python -m compileall -qq -j 0 -x '/(tests?|rllib|_inductor|networkx|pip|setuptools)/' \
	$(VENV)/lib || true
export LESIONCAST_ROOT ?= $(CURDIR)/out
# Ray lets in only who has its token. lesioncast gives each cluster of its own a new one.
export RAY_AUTH_MODE ?= token

.PHONY: demo serve test pytest faults observe lint style types manifests install develop clean

demo: install  ## simulate, convert, train both stages, forecast, evaluate
	$(VENV)/bin/python jobs/demo.py --config jobs/configs/demo.yaml

serve: $(SERVED)  ## forecasts over HTTP from the demo's bundle, for this machine alone
	$(VENV)/bin/lesioncast serve serve/service.yaml

test: style  ## lint, types, tests; types are checked while tests wait for processes
	$(MAKE) --no-print-directory --jobs 2 types pytest

pytest: develop  # in more processes than two cores have, because many tests wait for Ray
	$(VENV)/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 30

faults: develop  ## clusters of several nodes, some of which are killed; many minutes
	RAY_AUTH_MODE=disabled $(VENV)/bin/python -m pytest -m faults  # as are the clusters of these tests

observe: install  ## Prometheus on the cluster that `ray start` began here, with our alerts
	$(VENV)/bin/python k8s/monitoring/observe.py --out out/observe

lint: style types

style: develop
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: develop
	$(VENV)/bin/mypy

manifests: develop  ## the Kubernetes manifests of each overlay, in out/k8s
	@mkdir -p out/k8s
	@for overlay in dev dev/jobs gpu gpu/jobs; do \
		$(VENV)/bin/kubectl kustomize k8s/overlays/$$overlay > out/k8s/$$(echo $$overlay | tr / -).yaml || exit 1; \
	done

install: $(INSTALLED)  ## install what the jobs need

develop: $(DEVELOPED)  ## install what the tests need, too

# pip uses one processor, so what is installed already is compiled beside it.
$(UNCOMPILED):
	@echo "Setting up $(VENV) (about 2 minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	($(COMPILE)) & $(PIP) --editable . && wait
	@rm -f $(VENV)/uncompiled-* && touch $@

$(INSTALLED): $(UNCOMPILED)
	$(COMPILE)
	@rm -f $(VENV)/installed-* && touch $@

$(SERVED): $(INSTALLED)
	$(PIP) --editable ".[serve,dicom]"
	$(COMPILE)
	@rm -f $(VENV)/served-* && touch $@

$(DEVELOPED): $(UNCOMPILED)
	@echo "Adding what the tests need (about 1 minute the first time) ..."
	($(COMPILE)) & $(PIP) --editable ".[dev]" && wait
	$(COMPILE)
	@rm -f $(VENV)/developed-* && touch $@

clean:
	rm -rf $(VENV) out
