# Two commands do everything: `make demo` upsamples the bundled heart, `make test` passes the tests. `make quick` is a
# developer's loop, `make lint` runs the checkers, `make docs` builds the documentation. All set up their own environment
# in .venv first, from the pinned versions in requirements.lock, and work offline afterwards.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo test quick lint docs clean

demo: $(VENV)/engine.stamp          ## upsample the bundled heart; look at demo-output/index.html
	$(BIN)/calid demo demo-output --overwrite

# Two at once, whole files each, because files share what is slow to make; one thread each, for there are two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(VENV)/development.stamp     ## set up everything and run the tests
	$(PYTEST) $(PYTEST_ARGUMENTS)

# What most changes touch, without training, processes and windows: at most two minutes on two cores.
QUICK := architecture bisection checks diffusion function geometry library longaxis motion over_time preparation \
         reconstruct settings trust weights

quick: $(VENV)/development.stamp    ## a developer's loop, at most two minutes
	$(PYTEST) -x -q $(QUICK:%=Testing/engine/test_%.py) $(PYTEST_ARGUMENTS)

lint: $(VENV)/development.stamp     ## what the reviewers' machines check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/development.stamp     ## the documentation as a site in site/
	$(BIN)/mkdocs build --strict --quiet --site-dir site

clean:                              ## forget the environment and what was made
	rm -rf $(VENV) demo-output site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: what needs it then finds it there and does not ask for another build.
$(VENV)/engine.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) hatchling torch
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/development.stamp: $(VENV)/engine.stamp
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@
