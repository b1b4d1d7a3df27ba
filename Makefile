# The words a newcomer guesses: run, test, check, docs, bench, clean. Everything is installed into VENV, once.
#
#   make run                      the mobilenet recipe; results in runs/mobilenet
#   make run RECIPE=quickstart    another recipe
#   make mutants                  what one in ten small faults does to the tests, in all files that decide
#   make mutants ONLY=budget.loop all of deploy_prune/budget/loop.py
#   make test-extras              the tests of all extras' formats, with every extra installed
#   make test-arm                 artifacts on an emulated ARM processor, which is laid out once, in VENV
#   make docs                     the documentation as a site, in build/site
#   make test VENV=/tmp/env       in another environment
#   make test PYTHON=python3.12   with another Python

VENV ?= .venv
RECIPE ?= mobilenet.yaml
PYTHON ?= $(firstword $(shell for name in python3.11 python3 python; do command -v $$name; done))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_EXTRAS := $(VENV)/.installed-extras
INSTALLED_MUTANTS := $(VENV)/.installed-mutants
INSTALLED_DOCS := $(VENV)/.installed-docs
EXTRAS := litert executorch ncnn coreml openvino mnn ultralytics transformers
ARM := $(VENV)/arm
ARM_PACKAGES := numpy|onnxruntime|ai-edge-litert|ncnn|openvino|mnn
OR := $(subst $() $(), or ,$(EXTRAS))

.PHONY: run test test-extras check docs picture fuzz bench clean
.DEFAULT_GOAL := run

run: $(INSTALLED)
	$(BIN)/deploy-prune recipe $(RECIPE)

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# None of these tests may be skipped.
test-extras: $(INSTALLED_EXTRAS)
	DEPLOY_PRUNE_REQUIRE="$(EXTRAS)" $(BIN)/python -m pytest -n auto --dist worksteal -m "$(OR)"

.PHONY: test-arm
test-arm: $(INSTALLED_EXTRAS) | $(ARM)
	DEPLOY_PRUNE_ARM="$(ARM)" DEPLOY_PRUNE_REQUIRE=arm OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m arm

check: lint
	$(BIN)/python -m pytest -m "not slow" -n auto

.PHONY: lint
lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every warning is an error, broken links too. The site loads nothing from other hosts.
docs: $(INSTALLED_DOCS)
	PYTHONPATH=docs $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -b html docs build/site
	! grep -rE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//' --include='*.html' build/site

# The report of a finished mobilenet run, as the README shows it.
CHROMIUM ?= chromium
picture: $(INSTALLED)
	$(BIN)/deploy-prune report runs/mobilenet
	$(BIN)/python docs/_picture.py runs/mobilenet/report.html docs/images/report.png $(CHROMIUM)

# Hostile input of every kind that comes from outside, 20,000 in all; at most 20 minutes on two cores.
fuzz: $(INSTALLED_TEST)
	DEPLOY_PRUNE_FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n 2 --dist worksteal

# Small faults in what decides whether a result is right (tool.mutmut in pyproject.toml), and how many of them the tests
# see. Survivors are shown by `mutmut show NAME`; tests/mutants.md has those that are no faults. Without ONLY, of every
# function the 3rd, 13th, 23rd ... fault.
mutants: $(INSTALLED_MUTANTS)
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/mutmut run "$(if $(ONLY),deploy_prune.$(ONLY).*,*_mutmut_*3)"
	@$(BIN)/mutmut results
	@$(BIN)/mutmut results --all true | awk -F '[.]x[_ǁ]|: ' '$$3 != "not checked" { all[$$1]++; left[$$1] += $$3 ~ /survived|no tests/ } \
		END { for (file in all) printf "%s: %d of %d killed\n", file, all[file] - left[file], all[file] }' | sort

bench: $(INSTALLED)
	@set -e; for script in $(wildcard benchmarks/[a-z]*.py); do echo "$$script"; $(BIN)/python "$$script"; done

clean:
	if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find deploy_prune tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of packages: nothing is installed, and no network used, until pyproject.toml changes.
$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(INSTALLED_TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(INSTALLED) $@

$(INSTALLED_DOCS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $(INSTALLED) $@

$(INSTALLED_MUTANTS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,mutants]'
	touch $(INSTALLED) $(INSTALLED_TEST) $@

# Ultralytics is AGPL-3.0: here for its tests alone, with the one package that building and training its networks needs.
$(INSTALLED_EXTRAS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,all]'
	$(BIN)/python -m pip install --quiet --no-deps 'ultralytics>=8.4' opencv-python-headless
	touch $(INSTALLED) $(INSTALLED_TEST) $@

# The runtimes there have the versions that they have here.
$(ARM): | $(INSTALLED_EXTRAS)
	tests/support/arm_root.sh $@ $(BIN)/pip $$($(BIN)/python -m pip freeze | grep -iE '^($(ARM_PACKAGES))==')

# Some distributions ship Python without ensurepip; then the Python's own pip puts one into the environment.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "There is no Python here: install Python 3.11, or say where it is with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but deploy-prune needs 3.11 or newer: say PYTHON=python3.11" >&2; exit 1; }
	@if $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import venv, pip' 2>/dev/null; then \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --quiet --python $@ install pip; \
	else \
		echo "$(PYTHON) can't make environments: apt-get install python3-venv (or your system's package of that kind)" >&2; exit 1; \
	fi
