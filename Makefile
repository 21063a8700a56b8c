# Two commands do everything: `make demo` upsamples the bundled heart, `make test` passes the tests.
# Both set up their own environment in .venv first, from the pinned versions in requirements.lock, and work offline
# afterwards.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo test lint clean

demo: $(VENV)/engine.stamp          ## upsample the bundled heart; look at demo-output/index.html
	$(BIN)/calid demo demo-output --overwrite

test: $(VENV)/development.stamp     ## set up everything and run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGUMENTS)

lint: $(VENV)/development.stamp     ## what the reviewers' machines check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:                              ## forget the environment and what was made
	rm -rf $(VENV) demo-output

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
