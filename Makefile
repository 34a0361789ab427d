# README's commands. Each creates .venv and installs what is missing on its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?=
comma := ,
OUT ?= $(if $(SOURCE),build/demo-$(notdir $(patsubst %/,%,$(SOURCE))),build/demo)
export RAY_AUTH_MODE ?= disabled

.PHONY: demo test test-cluster bench-align bench-mining bench-schedule bench-train chaos-train chaos-hosts check format install clean

demo: install  ## photographs to report: procedural faces, or SOURCE=folder
	$(BIN)/python jobs/demo.py --out $(OUT) $(if $(SOURCE),--source $(SOURCE))

test: install
	$(BIN)/python -m pytest -m "not cluster"

test-cluster: install
	$(BIN)/python -m pytest -m cluster

bench-train: install  ## speed and memory of a training step, data wait, 4,096 faces at 224 px
	$(BIN)/python -m tests.bench.train

bench-schedule: install  ## the plan of batches at 10^8 faces and 64 workers
	$(BIN)/python -m tests.bench.schedule

bench-mining: install  ## mining in row blocks, against pytorch-metric-learning
	$(BIN)/python -m tests.bench.mining

chaos-train: install  ## 22 SIGKILLs over one training run, and the weights of an undisturbed one
	$(BIN)/python -m tests.bench.chaos_train

chaos-hosts: install  ## cut cables and power cuts under training, on hosts in network namespaces; needs root
	$(BIN)/python -m tests.bench.chaos_hosts

bench-align: install  ## the detector, against facenet-pytorch's; FACEREC_DATA=folder of photographs
	$(BIN)/python -m tests.bench.align

check: install  ## formatter, linter, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy jobs

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python %d.%d found; 3.11 or newer is needed: make PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev$(if $(filter x86_64,$(shell uname -m)),$(comma)openvino)]'
	touch $@

clean:
	rm -rf build
