# `make quickstart` and `make test` work on a fresh clone with Python 3.11+ and make alone.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON  ?= python3
ifeq ($(origin DATA),undefined)
DATASET ?= demo
else
DATASET ?= auto
endif
ORDER   ?= row_major
COND    ?= none
PRESET  ?= auto
RUN     ?= runs/$(if $(or $(filter auto,$(DATASET)),$(findstring :,$(DATASET))),$(notdir $(abspath $(DATA))),$(DATASET))
DATA    ?= $(if $(filter demo,$(DATASET)),data/demo)
WORKERS ?= 0
N       ?= 25
OUT     ?=
KILLS   ?= 50
# Processes of `make test`; auto is one per core, from 2 to 4, because each may start a Ray.
PROCESSES ?= auto
SET     ?=
SUITE   ?=
FIGURES ?= all
SIZE    ?= small
KIND    ?= depth
MODEL   ?=
TO      ?=
INIT    ?=
PORT    ?= 7860
# Token shards of other runs to train the prior on: one folder or URL, or several as PATH=WEIGHT.
SHARDS  ?=
# Conditions to tokenize beside the images, each by a tokenizer of its own.
CONDITIONS ?= $(if $(filter demo,$(DATASET)),segmentation)
export RAY_ADDRESS

# `any` is a prior of all orders.
ORDERS   := row_major spiral_out zcurve subsample alternate any
DATASETS := auto ade20k cifar10 deepfashion demo folder huggingface imagenet imagenet-depth landscapes restricted-imagenet webdataset
MODALITIES := segmentation depth pose
KINDS    := depth segmentation
CONDS    := none class segmentation depth pose
BIN      := .venv/bin
CLI      := $(BIN)/imagepriors
READY    := .venv/.ready
DEV      := .venv/.ready-dev
DOCS     := .venv/.ready-docs
LOCKED   := annotate bench cuda dev docs hub studio wandb
# uv installs the same pins in a fraction of pip's time; it is installed into .venv where the machine has none.
UV       := $(or $(shell command -v uv),$(BIN)/uv)
INSTALL   = { command -v $(UV) || $(BIN)/python -m pip install --quiet --progress-bar off uv; } >/dev/null && \
            $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt

define one_of
$(if $(filter $($(1)),$(2)),,$(error $(1)=$($(1)) is unknown: choose one of $(2)))
endef
$(call one_of,ORDER,$(ORDERS))
# A dataset of another package is package.module:function.
$(if $(findstring :,$(DATASET)),,$(call one_of,DATASET,$(DATASETS)))
$(foreach part,$(subst +, ,$(COND)),$(if $(filter $(part),$(CONDS)),,$(error COND=$(COND) is unknown: choose one of $(CONDS), or several joined by +)))
$(call one_of,KIND,$(KINDS))

$(foreach name,$(CONDITIONS),$(if $(filter $(name),$(MODALITIES)),,$(error CONDITIONS=$(name) is unknown: choose out of $(MODALITIES))))

# An address such as hf://OWNER/NAME is for the studio only: its colon cannot be in the rules.
PAGE     := $(RUN)
ifneq ($(findstring :,$(RUN)),)
$(if $(filter-out studio help,$(MAKECMDGOALS)),$(error RUN=$(RUN) is an address: only studio opens one, pass a folder))
override RUN := $(subst :,-,$(RUN))
endif

PRIOR    := $(RUN)/prior-$(ORDER)$(if $(filter-out none,$(COND)),-$(COND))$(if $(word 2,$(SHARDS)),-blend)
BESIDE   := $(CONDITIONS:%=$(RUN)/tokenizer-%/summary.json)
SOURCE   := --dataset $(DATASET) --data $(DATA)
NEEDDATA  = @test -n "$(DATA)" || { echo "DATA= is empty: pass the folder that holds $(DATASET), DATA=/path" >&2; exit 2; }

help: ## List targets and variables
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Variables (now): DATASET=$(DATASET) DATA=$(DATA) ORDER=$(ORDER) COND=$(COND) PRESET=$(PRESET)"
	@echo "                   CONDITIONS='$(CONDITIONS)' SUITE='$(SUITE)' FIGURES='$(FIGURES)' SIZE=$(SIZE) KIND=$(KIND) MODEL=$(MODEL) PORT=$(PORT)"
	@echo "                   RUN=$(RUN) WORKERS=$(WORKERS) RAY_ADDRESS=$(RAY_ADDRESS) N=$(N) SET='$(SET)'"
	@echo "  SET takes any flags of the command, e.g. SET='--steps 100 --model.n-layer 4'"

setup: $(DEV) ## Make .venv from the pinned versions, with all that tests and lint require

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

$(DEV): $(READY)
	$(INSTALL) -e '.[dev]'
	@touch $@

$(DOCS): $(READY)
	$(INSTALL) -e '.[docs]'
	@touch $@

# Without trackio, which would pin an older Pillow for all.
lock: $(DEV) ## Pin every version anew in constraints.txt, as far as pyproject.toml's have changed (SET=--upgrade: all)
	$(UV) pip compile --quiet --no-header --no-annotate $(LOCKED:%=--extra %) --universal pyproject.toml -o constraints.txt $(SET)

# Two trainings at once, each with half of the cores, finish earlier than one after the other: the networks are small.
DEMO     := $(MAKE) --no-print-directory DATASET=demo
TOGETHER  = OMP_NUM_THREADS=$$($(BIN)/python -c 'from runkit.machine import usable_cores as n; print(-(-n() // 2))') \
            $(DEMO) -j2

quickstart: DATASET = demo
quickstart: DATA = data/demo
quickstart: $(READY) ## Demo data → tokenizers → shards → two priors → report
	@$(DEMO) data/demo/demo.json
	@$(TOGETHER) $(RUN)/tokenizer/summary.json $(RUN)/tokenizer-segmentation/summary.json
	@$(DEMO) $(RUN)/shards/dataset.json
	@$(TOGETHER) $(RUN)/prior-row_major-segmentation/summary.json $(RUN)/prior-row_major-class/summary.json
	@$(CLI) report $(RUN) $(SOURCE)

demo-data: data/demo/demo.json ## Generate the demo scenes
data/demo/demo.json: | $(READY)
	$(CLI) demo-data data/demo

train-vqgan: $(RUN)/tokenizer/summary.json ## Stage 1: train the tokenizer
$(RUN)/tokenizer/summary.json: $(if $(filter demo,$(DATASET)),data/demo/demo.json) | $(READY)
	$(NEEDDATA)
	$(CLI) train-vqgan --preset $(PRESET) $(SOURCE) --out $(@D) $(INIT:%=--init %) $(if $(filter train-vqgan,$(MAKECMDGOALS)),$(SET))
$(RUN)/tokenizer-%/summary.json: $(if $(filter demo,$(DATASET)),data/demo/demo.json) | $(READY)
	$(NEEDDATA)
	$(CLI) train-vqgan --preset $(if $(filter demo,$(DATASET)),demo-$*,$*-f16) $(SOURCE) --out $(@D)

inspect: $(if $(filter demo,$(DATASET)),data/demo/demo.json) | $(READY) ## Count, check and show a dataset
	$(NEEDDATA)
	$(CLI) inspect $(DATASET) --data $(DATA) --out $(RUN)/inspect $(if $(filter inspect,$(MAKECMDGOALS)),$(SET))

annotate: $(if $(filter demo,$(DATASET)),data/demo/demo.json) | $(READY) ## Make depth maps or masks of images (KIND=, MODEL=)
	$(NEEDDATA)
	$(CLI) annotate $(KIND) $(SOURCE) $(if $(MODEL),--model $(MODEL)) --workers $(WORKERS) $(if $(filter annotate,$(MAKECMDGOALS)),$(SET))

evaluate: $(RUN)/tokenizer/summary.json ## Reconstruction metrics of the tokenizer (PSNR, SSIM, Fréchet, usage)
	$(NEEDDATA)
	$(CLI) evaluate-tokenizer $(SOURCE) --tokenizer $(RUN)/tokenizer $(if $(filter evaluate,$(MAKECMDGOALS)),$(SET))

tokenize: $(RUN)/shards/dataset.json ## Encode the dataset into token shards on Ray
$(RUN)/shards/dataset.json: $(RUN)/tokenizer/summary.json $(BESIDE) | $(READY)
	$(NEEDDATA)
	$(CLI) tokenize --preset $(PRESET) $(SOURCE) --tokenizer $(RUN)/tokenizer \
	  $(if $(BESIDE),--condition $(patsubst %/summary.json,%,$(BESIDE))) \
	  --out $(@D) --workers $(WORKERS) $(if $(filter tokenize,$(MAKECMDGOALS)),$(SET))

ORDERED   = $(if $(filter any,$(1)),--objective any_order,--order $(1))
# The folder is named prior-ORDER or prior-ORDER-CONDITION, with -blend at the end for several SHARDS.
train-prior: $(PRIOR)/summary.json ## Stage 2: train the prior (ORDER=, COND=, SHARDS='a=0.7 b=0.3')
$(RUN)/prior-%/summary.json: $(if $(SHARDS),,$(RUN)/shards/dataset.json) | $(READY)
	$(CLI) train-prior --preset $(PRESET) $(call ORDERED,$(firstword $(subst -, ,$*))) \
	  --condition $(or $(filter-out blend,$(word 2,$(subst -, ,$*))),none) --shards $(or $(SHARDS),$(RUN)/shards) \
	  --out $(@D) \
	  $(if $(filter train-prior,$(MAKECMDGOALS)),$(SET))

sample: $(PRIOR)/summary.json ## Draw N pictures from the prior (ORDER=, COND=, OUT=samples.npz or .tar or a folder)
	$(CLI) sample --preset $(PRESET) --prior $(PRIOR) --shards $(RUN)/shards --n $(N) \
	  --out $(or $(OUT),$(RUN)/samples-$(notdir $(PRIOR))) $(if $(filter sample,$(MAKECMDGOALS)),$(SET))

push: $(PRIOR)/summary.json ## Publish the prior with its tokenizer, and the shards, on the Hub (TO=hf://user/name)
	@test -n "$(TO)" || { echo "TO= is empty: pass the address, TO=hf://user/name" >&2; exit 2; }
	$(INSTALL) -e '.[hub]'
	$(CLI) push $(PRIOR) $(TO) $(if $(filter push,$(MAKECMDGOALS)),$(SET))
	$(CLI) push $(RUN)/shards $(TO:hf://%=hf://datasets/%) $(if $(filter push,$(MAKECMDGOALS)),$(SET))

report: $(READY) ## Write RUN/report/report.html
	$(CLI) report $(RUN) $(SOURCE)

# The demo run is made first where it does not exist; another RUN is not, it may be misspelt.
NODEMO   := $(if $(wildcard $(RUN)/*/model.safetensors),,$(and $(filter demo,$(DATASET)),$(filter runs/demo,$(RUN)),quickstart))
studio: $(NODEMO) | $(READY) ## Open a page to draw with the priors of RUN and to look into its tokens (PORT=, SET=--share)
	$(INSTALL) -e '.[studio]'
	$(CLI) studio $(PAGE) --port $(PORT) $(if $(filter studio,$(MAKECMDGOALS)),$(SET))

evaluate-prior: $(PRIOR)/summary.json ## Likelihood, distances and agreement with conditions of the prior (ORDER=, COND=)
	$(NEEDDATA)
	$(CLI) evaluate-prior --prior $(PRIOR) --shards $(RUN)/shards $(SOURCE) $(if $(filter evaluate-prior,$(MAKECMDGOALS)),$(SET))

figures: $(if $(filter demo,$(DATASET)),data/demo/demo.json) | $(READY) ## The paper's experiments (FIGURES='orders efficiency …', SIZE=small, small-256, cifar10, paper)
	$(NEEDDATA)
	$(CLI) experiment $(FIGURES) --preset $(SIZE) $(SOURCE) --run $(RUN) --workers $(WORKERS) $(SET)

bench: $(DEV) ## Measure against the rivals on this machine (SUITE='loader sample', DATA=photos; all without)
	$(INSTALL) -e '.[dev,bench]'
	$(INSTALL) --no-deps -r benchmarks/priorbench/rivals.txt
	$(BIN)/python -m priorbench $(SUITE) $(if $(filter-out file,$(origin DATA)),--data $(DATA)) $(SET)

gpu-check: $(READY) ## Check and measure this machine's GPU in 8 minutes (SET='--only …'; without a GPU: a rehearsal)
	$(INSTALL) -e '.[bench,cuda]'
	$(BIN)/python benchmarks/gpu_check.py $(SET)

readme: $(READY) ## Put the tables that bench has measured into docs/benchmarks.md and docs/gpu.md
	$(BIN)/python -m priorbench.readme docs/benchmarks.md docs/gpu.md

docs: $(DOCS) ## Build the documentation site into site/, strictly: every link and name must resolve
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

faults: $(DEV) ## Kill workers, nodes and drivers of small jobs at random, and compare the bytes (KILLS=)
	KILLS=$(KILLS) $(BIN)/pytest -m slow -s tests/tokenize/test_faults.py

check: lint test ## Lint, types, import contracts, tests

lint: $(DEV) ## ruff, mypy strict, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# A file's tests stay in one process. One thread per process: the networks are small, and the cores are all in use.
test: $(DEV) ## Run the tests in PROCESSES at once (slow ones: .venv/bin/pytest -m slow)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(PROCESSES) --dist loadfile

clean: ## Remove build products and caches (keeps .venv, runs and data)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help setup lock quickstart demo-data inspect annotate train-vqgan evaluate tokenize train-prior \
        evaluate-prior figures \
        sample push report studio bench gpu-check readme docs faults check lint test clean
