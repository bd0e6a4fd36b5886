# Set anomaly detection on cached features. `make` lists what there is.

PYTHON ?= python3
PIP_ARGS ?=
DATASET ?= cifar100
ROOT ?=
WEIGHTS ?= torchvision
BACKBONE ?= resnet18
IMAGE_SIZE ?=
VIEWS ?= plain
LAYERS ?= last
PRECISION ?= float32
ENGINE ?= auto
DEVICE ?= auto
RAY ?=
ON_ERROR ?=
DECODE ?=
CPUS_PER_WORKER ?=
GPUS_PER_WORKER ?=
SHIP_IMAGES ?=
CONFIG ?=
SEED ?=
SET ?=
RUN ?=
ONLY ?=
IMAGES ?=

VENV := .venv
READY := $(VENV)/.ready
PY := $(VENV)/bin/python
PYTEST = $(PY) -m pytest --numprocesses auto --maxprocesses 4

CLUSTER = $(if $(RAY),--ray "$(RAY)") $(if $(CPUS_PER_WORKER),--cpus-per-worker "$(CPUS_PER_WORKER)") \
	$(if $(GPUS_PER_WORKER),--gpus-per-worker "$(GPUS_PER_WORKER)")
FEATURES = $(PY) -m extract features --dataset "$(DATASET)" $(if $(ROOT),--root "$(ROOT)") --weights "$(WEIGHTS)" \
	--backbone "$(BACKBONE)" $(if $(IMAGE_SIZE),--image-size "$(IMAGE_SIZE)") --views "$(VIEWS)" --layers "$(LAYERS)" \
	--precision "$(PRECISION)" --engine "$(ENGINE)" --device "$(DEVICE)" $(if $(ON_ERROR),--on-error "$(ON_ERROR)") $(if $(DECODE),--decode "$(DECODE)") $(CLUSTER) $(if $(SHIP_IMAGES),--ship-images)
FIT = $(PY) -m train fit $(if $(CONFIG),--config "$(CONFIG)") $(if $(SEED),--seed "$(SEED)") \
	$(foreach pair,$(SET),--set "$(pair)") $(if $(RUN),--run "$(RUN)") --device "$(DEVICE)"

.DEFAULT_GOAL := help
.PHONY: help demo features train odd audit phase log bench test check format

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## the whole pipeline on bundled digits, offline, in a minute or two
	@store=$$($(PY) -m extract features --dataset digits --weights random --image-size 64) && \
		$(PY) -m train fit --store "$$store" --config experiments/demo/config.toml

features: $(READY)  ## images → feature store (DATASET= ROOT= WEIGHTS= BACKBONE= IMAGE_SIZE= VIEWS= LAYERS= PRECISION= ENGINE= DEVICE=, RAY= a cluster)
	@$(FEATURES)

train: $(READY)  ## feature store → trained head, report, plots (CONFIG= SEED= SET= RUN=, and those of features)
	@store=$$($(FEATURES)) && $(FIT) --store "$$store"

# What the pictures of odd and audit are called in a message is what was typed here
HAVE_IMAGES = @test -n "$(IMAGES)" || { echo "Error: which images? make $@ IMAGES=path/to/images" >&2; exit 2; }; \
	test -e "$(IMAGES)" || { echo "Error: there is nothing at $(IMAGES): check the path in IMAGES=" >&2; exit 2; }
FIND = @$(PY) -m set_anomaly $@ "$(IMAGES)" --weights "$(WEIGHTS)" --backbone "$(BACKBONE)" \
	$(if $(IMAGE_SIZE),--image-size "$(IMAGE_SIZE)") --views "$(VIEWS)" --layers "$(LAYERS)" --precision "$(PRECISION)" \
	--engine "$(ENGINE)" --device "$(DEVICE)" $(if $(ON_ERROR),--on-error "$(ON_ERROR)") $(if $(DECODE),--decode "$(DECODE)")

odd: $(READY)  ## a folder of images → which do not belong? a page (IMAGES=, RUN= a trained head, and those of features)
	$(HAVE_IMAGES)
	$(FIND) $(if $(RUN),--run "$(RUN)")

audit: $(READY)  ## a folder of class folders → wrong labels, images of no class, duplicates: a page (IMAGES=)
	$(HAVE_IMAGES)
	$(FIND)

phase: $(READY)  ## all runs of a phase of the experiment log, resumable (CONFIG= ONLY= RAY=, and those of features)
	@store=$$($(FEATURES)) && $(PY) -m train phase "$(CONFIG)" --store "$$store" $(if $(ONLY),--only "$(ONLY)") \
		$(foreach pair,$(SET),--set "$(pair)") $(CLUSTER)

log: $(READY)  ## reports of finished runs, and of the benchmark → the experiment log, its charts, the README's tables
	@$(PY) -m train log
	@$(PY) -m bench --readme docs/speed.md
	@$(PY) -m bench.find --readme docs/find.md
	@$(PY) -m bench.cost --readme docs/speed.md

bench: $(READY)  ## the project beside its peers → bench/report.json, and a table (make log: docs/speed.md, its chart)
	@$(PY) -m bench

test: $(READY)  ## all fast tests (PIP_ARGS= is passed to pip when .venv is made)
	@$(PYTEST)

check: $(READY)  ## what CI runs: format, lint, types, tests
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(PYTEST)

format: $(READY)  ## rewrite the code in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,fast]'
	@touch $@
