# make demo   trains the stand-in model; make test   runs the tests. Both install what they need into
# VENV. With `source .venv/bin/activate` the commands of the documentation work as they stand.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/demo
SOAK ?= 1000
FAULTS ?= 9
BIN := $(VENV)/bin

.PHONY: demo test parity aot lint types soak innocent chaos ray trackers notebook package clean

demo: $(VENV)/run.stamp
	$(BIN)/python -m etpo_jax.train --flagfile=launch/tiny.flags --run_dir=$(RUN_DIR)
	@echo
	@echo "Before you type other commands, activate the environment:  source $(BIN)/activate"

# Two processes, as most of the time goes into compilation on one core.
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

# Compares with PyTorch, the models of transformers and PEFT, which are installed for it.
parity: $(VENV)/parity.stamp
	$(BIN)/python -m pytest tests/models/parity_test.py tests/benchmarks tests/etpo_jax/export_test.py

# Compiles programs for NVIDIA cards and TPUs that are not there. Their compilers (350 MB) lie beside
# VENV, because JAX would look for devices if they were in it.
aot: $(VENV)-aot/installed.stamp
	PYTHONPATH=$(VENV)-aot JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/etpo_jax/plan_test.py

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

# Executes many hostile and benign programs; fails if memory, files or processes grow.
soak: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.soak --num_executions=$(SOAK)

# Stops, freezes and starves the processes that execute programs, in every tier of the wall.
innocent: $(VENV)/test.stamp
	ETPO_ALL_TIERS=1 $(BIN)/python -m pytest tests/env/execution/innocent_test.py

# Lets faults hit training runs, one of each kind; fails if one costs more than an update.
chaos: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.chaos --faults=$(FAULTS)

# Executes programs on a Ray cluster of two nodes on this machine; installs Ray.
ray: $(VENV)/ray.stamp
	$(BIN)/python -m pytest tests/env/execution/ray_executor_test.py

# Shows runs by Weights & Biases (offline) and MLflow (a local store); installs both.
trackers: $(VENV)/trackers.stamp
	$(BIN)/python -m pytest tests/etpo_jax/runs/services_test.py

# The clone itself is installed as well, editable: `etpo` and `import etpo_jax` work from any folder.
$(VENV)/run.stamp: requirements.txt pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test.stamp: requirements-test.txt requirements.txt pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt --editable .
	touch $@ $(VENV)/run.stamp

$(VENV)/parity.stamp: requirements-parity.txt $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

$(VENV)-aot/installed.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target=$(VENV)-aot $$($(BIN)/python -m etpo_jax.devices.topologies)
	touch $@

$(VENV)/notebook.stamp: requirements-notebook.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-notebook.txt
	touch $@

$(VENV)/ray.stamp: requirements-ray.txt $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	touch $@

$(VENV)/trackers.stamp: pyproject.toml $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[wandb,mlflow]'
	touch $@

# Executes the notebook with few steps; fails if a cell does.
notebook: $(VENV)/notebook.stamp
	ETPO_NOTEBOOK_STEPS=32 $(BIN)/jupyter-execute --timeout=600 notebooks/own_reward.ipynb

# Installs this project into an empty environment of the newest Python and trains outside the clone.
package:
	.ci/installed

clean:
	rm -rf $(VENV) $(VENV)-aot build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
