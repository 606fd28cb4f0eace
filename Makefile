# make demo   trains the stand-in model; make test   runs the tests. Both install what they need.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/demo
BIN := $(VENV)/bin

.PHONY: demo test lint types clean

demo: $(VENV)/run.stamp
	$(BIN)/python -m etpo_jax.train --flagfile=launch/tiny.flags --run_dir=$(RUN_DIR)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

$(VENV)/run.stamp: requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements-test.txt requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
