# Each target sets itself up: `.venv` is made when it is missing or older than what it is made from.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export NO_ALBUMENTATIONS_UPDATE = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true
export DVC_NO_ANALYTICS = 1
export DO_NOT_TRACK = true
export OMP_WAIT_POLICY = passive

.PHONY: help demo test check fuzz repro ui dvc.yaml clean

help: ## say what the targets do
	@grep -E '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "error: Python 3.11 with venv is needed: apt-get install python3.11-venv"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY) ## run the whole flow on real handwritten digits, and print the verdict
	$(BIN)/python -m flows.augment

test: $(READY) ## unit tests and both drivers end to end
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=30

check: $(READY) ## lint (security too), format, types, import contracts, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.ci/audit $(BIN)

fuzz: $(READY) ## throw damaged files at every reader for five minutes
	$(BIN)/python tests/corpus/fuzz.py --seconds 300

repro: $(READY) ## bring artifacts/ up to date with DVC
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

ui: $(READY) ## Prefect and MLflow with their pages on 127.0.0.1, and a worker; ports in params.yaml
	@$(BIN)/python -m flows.ui $(if $(PREFECT_PORT),--prefect-port $(PREFECT_PORT)) \
	  $(if $(MLFLOW_PORT),--mlflow-port $(MLFLOW_PORT)) $(if $(PARAMS),--params $(PARAMS))

dvc.yaml: $(READY) ## write dvc.yaml anew after an import or the registry changed
	$(BIN)/python -m pipeline dag > dvc.yaml.new && mv dvc.yaml.new dvc.yaml

clean: ## remove what was generated; .venv, mlflow.db and your data stay
	rm -rf artifacts runs dvc_plots build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
