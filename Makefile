# make demo   trains the stand-in model; make test   runs the tests. Both install what they need.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/demo
SOAK ?= 1000
BIN := $(VENV)/bin

.PHONY: demo test parity lint types soak ray clean

demo: $(VENV)/run.stamp
	$(BIN)/python -m etpo_jax.train --flagfile=launch/tiny.flags --run_dir=$(RUN_DIR)

# Two processes: most of the time is compilation, on one core each.
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# Live comparison with PyTorch, transformers' models and PEFT, which are installed for it.
parity: $(VENV)/parity.stamp
	$(BIN)/python -m pytest tests/models/parity_test.py tests/benchmarks tests/etpo_jax/export_test.py

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

# Many hostile and benign programs; fails if anything grows.
soak: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.soak --num_executions=$(SOAK)

# Execution on a Ray cluster of two nodes on this machine; installs Ray.
ray: $(VENV)/ray.stamp
	$(BIN)/python -m pytest tests/env/execution/ray_executor_test.py

$(VENV)/run.stamp: requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements-test.txt requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@ $(VENV)/run.stamp

$(VENV)/parity.stamp: requirements-parity.txt $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

$(VENV)/ray.stamp: requirements-ray.txt $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
