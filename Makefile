# Every target sets up .venv when it is missing or stale, and only then.
# PYTHON=/path/to/python3.12 make test   chooses the interpreter; the default is the first of these that is 3.11 or newer.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python

export PLAYWRIGHT_BROWSERS_PATH := $(abspath $(VENV))/browsers

.DEFAULT_GOAL := help
.PHONY: help demo app test tensorboard notebooks lab bench lint clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 20

demo: $(VENV)/with-core ## render scenes, train on them, evaluate on unseen ones; minutes on two cores
	$(RUN) -m bitgen train --config scenes
	$(RUN) -m bitgen evaluate runs/scenes --data scenes --split test --json runs/scenes/test.json
	@echo "The run is in runs/scenes: test.json has the numbers, make tensorboard shows the curves."

app: $(VENV)/with-app,index,viz ## search and look inside what make demo trained, in the browser
	$(RUN) -m bitgen app

test: $(VENV)/with-dev,viz,data,app,index,notebooks $(VENV)/browser ## the whole test suite, with a real browser
	$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

tensorboard: $(VENV)/with-core ## the curves of every run under runs/
	$(RUN) -m tensorboard.main --logdir runs

notebooks: $(VENV)/with-notebooks,viz,data ## run the notebooks from top to bottom and keep what they print
	$(RUN) notebooks/execute.py

lab: $(VENV)/with-notebooks,lab,viz,data ## JupyterLab on the notebooks, with the library importable
	$(RUN) -m jupyterlab notebooks

bench: $(VENV)/with-core ## where the time goes, and what each part of the model is worth: the quick passes
	$(RUN) benchmarks/train_step.py parts objective --batch 8
	$(RUN) benchmarks/data_loading.py
	$(RUN) benchmarks/encode.py
	$(RUN) benchmarks/scaling.py
	$(RUN) benchmarks/scaling.py processes
	$(RUN) benchmarks/ablate.py

lint: $(VENV)/with-dev ## ruff
	$(RUN) -m ruff check .

clean: ## removes .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find bitgen tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras: a target installs what it needs, once, and again when the lists change. Compiling is
# left to all cores (pip takes one), and what no Python can compile is left as it is, as pip would.
$(VENV)/with-%: pyproject.toml constraints.txt $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.$(if $(filter-out core,$*),[$*])'
	$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# A browser for the app's tests: an installed Chromium, else Debian's (as root), else Playwright's own. Where none can be
# had, those tests are skipped, and the summary says so.
$(VENV)/browser: $(RUN) | $(VENV)/with-dev,viz,data,app,index,notebooks
	@for name in chromium chromium-browser google-chrome; do command -v $$name && break; done >$@ \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	     && apt-get install -y -qq --no-install-recommends chromium >/dev/null && command -v chromium >$@; } \
	|| { $(RUN) -m playwright install chromium-headless-shell >/dev/null && echo playwright >$@; } \
	|| { echo "no browser could be installed: the app's browser tests will be skipped" >&2; : >$@; }

$(RUN):
	@test -n "$(PYTHON)" || { echo "BitGen needs Python 3.11 or newer on the PATH (or make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) lacks its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check pip==26.1.2  # Python 3.11's own takes half as long again
