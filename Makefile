# `make quick` is a first look in minutes, `make repro` runs the study, `make test` the tests. All set up .venv first if it is missing.
# `make repro JOBS=4` runs four runs of the study in parallel. The default is one per GPU or, without a GPU, per core.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUTF8 := 1

.PHONY: quick repro test test-browser lab inspect report bench lock
quick: $(VENV)/ready # in the folder quick/
	scripts/quick.sh $(JOBS)

repro: $(VENV)/ready
	python scripts/repro.py $(JOBS)

test: $(VENV)/ready
	pytest --durations 10
	ruff check

lab: $(VENV)/ready
	jupyter lab notebooks

inspect: $(VENV)/inspect # the inspector, a page served on this machine only
	JUPYTER_PATH="$(CURDIR)/scripts" voila notebooks/inspect.ipynb --template=offline --Voila.ip=127.0.0.1 --VoilaExecutor.startup_timeout=300

report: $(VENV)/ready # writes report/index.html
	python scripts/report.py

test-browser: $(VENV)/inspect $(VENV)/browser # tests the inspector in Chromium
	pytest -o addopts= -q -rs tests/browser

bench: $(VENV)/ready
	python scripts/bench.py --json results/bench.json --figure results/bench.png

lock: # update requirements.lock from pyproject.toml
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --universal --upgrade --no-header --no-annotate --no-emit-index-url --extra study --extra test pyproject.toml -o requirements.lock

$(VENV)/inspect $(VENV)/browser: $(VENV)/ready
	$(VENV)/bin/python -m pip install -c requirements.lock -e '.[$(@F)]'
	touch $@

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements.lock
	$(VENV)/bin/python -m pip install --no-deps -e .
	@# in a folder without git, as of a zip, DVC has to be told
	@[ -e .git ] || git rev-parse --git-dir > /dev/null 2>&1 || $(VENV)/bin/dvc config --local core.no_scm true
	touch $@
