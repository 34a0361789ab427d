# README's commands. Each creates .venv and installs what is missing on its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?=
comma := ,
OUT ?= $(if $(SOURCE),build/demo-$(notdir $(patsubst %/,%,$(SOURCE))),build/demo)

.PHONY: demo test test-cluster fuzz attack chaos bench-align bench-gpu bench-hosts bench-cropped bench-learning bench-loader bench-mining bench-scale bench-schedule bench-train bench-evaluate bench-embed chaos-align chaos-embed chaos-train chaos-hosts check format install clean

demo: install  ## photographs to report: procedural faces, or SOURCE=folder
	$(BIN)/python jobs/demo.py --out $(OUT) $(if $(SOURCE),--source $(SOURCE))

test: install
	$(BIN)/python -m pytest -m "not cluster"

test-cluster: install
	$(BIN)/python -m pytest -m cluster

fuzz: install  ## 10,000 damaged images through the aligner
	$(BIN)/python -m tests.bench.fuzz

attack: install  ## network, decoder, erasure and fencing attacks; exits 1 where one succeeds
	$(BIN)/python -m tests.bench.attack

bench-train: install  ## speed and memory of a training step, data wait, 4,096 faces at 224 px
	$(BIN)/python -m tests.bench.train

bench-loader: install  ## decoding and augmenting in processes against the thread, and what launches cost beside them
	$(BIN)/python -m tests.bench.loader

bench-gpu: install  ## training, detection and embedding on one GPU, 8 minutes; needs an NVIDIA GPU
	$(BIN)/python -m tests.bench.gpu

bench-schedule: install  ## the plan of batches at 10^8 faces and 64 workers
	$(BIN)/python -m tests.bench.schedule

bench-learning: install  ## the recipe against pytorch-metric-learning, 75 minutes; FACEREC_DATA=folder of photographs
	$(BIN)/python -m tests.bench.learning

bench-mining: install  ## mining in row blocks, against pytorch-metric-learning
	$(BIN)/python -m tests.bench.mining

chaos-train: install  ## 22 SIGKILLs over one training run, and the weights of an undisturbed one
	$(BIN)/python -m tests.bench.chaos_train

chaos-hosts: install  ## cut cables and power cuts under training, on hosts in network namespaces; needs root
	$(BIN)/python -m tests.bench.chaos_hosts

chaos: install  ## the whole pipeline under 50 faults, on hosts in network namespaces, and all that an undisturbed one leaves; needs root
	$(BIN)/python -m tests.bench.chaos_pipeline

bench-hosts: install  ## the pipeline submitted to three hosts, of which one loses power and one its cable; needs root
	$(BIN)/python -m tests.bench.three_hosts

chaos-align: install  ## 22 SIGKILLs over one alignment of 2,000 photographs, and the faces of an undisturbed one
	$(BIN)/python -m tests.bench.chaos_align

bench-align: install  ## the detector, against facenet-pytorch's; FACEREC_DATA=folder of photographs
	$(BIN)/python -m tests.bench.align

bench-scale: install  ## a million photographs through all but the detector, and the driver's memory
	$(BIN)/python -m tests.bench.scale

bench-cropped: install  ## the same people trained from aligned and from merely cropped faces
	$(BIN)/python -m tests.bench.cropped

bench-evaluate: install  ## 50,000 embeddings of 1,000 people, evaluated whole
	$(BIN)/python -m tests.bench.evaluate

bench-embed: install  ## the embedder against eager fp32, and photographs to vectors; FACEREC_DATA=folder of photographs
	$(BIN)/python -m tests.bench.embed

chaos-embed: install  ## 10 SIGKILLs while photographs are embedded, and the vectors of an undisturbed run
	$(BIN)/python -m tests.bench.chaos_embed

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
