# With a GPU, set a matching build of torch: make setup TORCH="torch==2.13.0"
# (the registry's default build includes CUDA on Linux), or TORCH="torch==2.13.0 --index-url URL"
# with the index that PyTorch names for your driver.
TORCH ?= torch==2.13.0
PYTHON ?= python3

# Published losses and networks that tests compare with; installed without dependencies, since torchvision does not match every build of torch.
ORACLES := 'lightly==1.6.0' 'dynamic-network-architectures==0.4.4'

VENV ?= .venv
BIN := $(VENV)/bin
# On small volumes two parallel processes are faster than two threads per operation.
FEW_THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# The demo with fewer patients, steps and runs: it tests that the demo works, and its results mean nothing.
SMALL := out_dir=runs/demo_small replicates=1 'vary.num_labelled=[2]' \
	prepare.out=data/demo_small prepare.options.num_patients=8 \
	pretrain.data.root=data/demo_small pretrain.train.steps=2 pretrain.train.samples_per_step=2 pretrain.train.warmup_steps=1 \
	finetune.set.data.root=data/demo_small finetune.set.train.steps=2 finetune.set.train.warmup_steps=1

# Files or folders for `make mutation`. The default ones pass; any of medcl3d/ may be given.
FILES ?= medcl3d/evaluation/statistics/bootstrap.py medcl3d/pairs/boxes.py medcl3d/views/intensity.py medcl3d/objectives/projector.py

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-small test test-shapes test-slow mutation lint docs language reliability drills security audit pictures measured recovery benchmark benchmark-check scaling wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## create .venv with all dependencies

$(VENV)/.stamp: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps $(ORACLES)
	touch $@

demo: setup ## compare ways to define pairs on simulated scans and print the path of the report
	$(BIN)/medcl3d compare configs/demo/demo.yaml

demo-small: setup ## run the demo with tiny settings, to test that it works
	$(BIN)/medcl3d compare configs/demo/demo.yaml $(SMALL)

test: setup ## run the fast tests
	$(FEW_THREADS) $(BIN)/python -m pytest -n 2 -m 'not slow' --durations 10

test-shapes: setup ## run the fast tests of annotated packages with checks of all shapes
	CHECK_SHAPES=1 $(FEW_THREADS) $(BIN)/python -m pytest -n 2 -m 'not slow' $(ANNOTATED:%=tests/%)

test-slow: setup ## run the tests that take minutes, and each property on a thousand random collections
	$(BIN)/python -m pytest -m slow --durations 10
	HYPOTHESIS_PROFILE=thorough $(FEW_THREADS) $(BIN)/python -m pytest -n 2 tests/pairs

mutation: setup ## list mutations in FILES that no test detects; minutes per file
	$(FEW_THREADS) $(BIN)/python tests/mutation/run.py $(FILES)

lint: setup ## check style, types and the oldest supported Python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --no-tips --eval-annotations --target=3.10- --violations medcl3d tools
	$(BIN)/python tests/language.py

language: setup ## list phrases that tests/language.yaml replaces
	$(BIN)/python tests/language.py

reliability: setup ## cause every fault once and write the table of docs/reference/faults.md
	$(FEW_THREADS) $(BIN)/python docs/reliability.py

drills: setup ## cause faults during tiny runs and write the tables of docs/reference/drills.md; KILLS=3 for fewer random kills
	$(FEW_THREADS) $(BIN)/python docs/drills.py

docs: setup ## build the documentation site, docs/_build/html/index.html
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going docs docs/_build/html

security: setup ## search medcl3d and tools for dangerous patterns
	$(BIN)/bandit --quiet --recursive -ll medcl3d tools

audit: setup ## look up known vulnerabilities of the installed packages online
	$(BIN)/pip-audit --skip-editable

# Packages with shapes in their signatures, as in tests/shapes.py.
ANNOTATED = core pairs losses objectives encoders views sampling

# Folder of the real sets for `make pictures` and `make measured`.
SETS ?= ../shared/data

pictures: setup ## redraw the pictures of docs/strategies from real scans
	for set in ixi40 ms_longitudinal; do test -d data/pictures/$$set || \
		$(BIN)/medcl3d prepare bids $(SETS)/$$set --out data/pictures/$$set 'spacing_mm=[2, 2, 2]' || exit 1; done
	$(FEW_THREADS) $(BIN)/python docs/strategies/draw.py

measured: setup ## measure the distances of each strategy's pairs on real scans
	for set in ixi40 ms_longitudinal; do test -d data/measured/$$set || \
		$(BIN)/medcl3d prepare bids $(SETS)/$$set --out data/measured/$$set 'spacing_mm=[4, 4, 4]' || exit 1; done
	$(FEW_THREADS) $(BIN)/python docs/strategies/measure.py

recovery: setup ## measure which known factors each strategy keeps: docs/strategies/recovery.md, an hour or more
	test -d data/recovery/store || $(BIN)/medcl3d prepare simulated - --out data/recovery num_patients=80 test_fraction=0.4
	$(BIN)/python docs/strategies/recovery.py

# Benchmarks beside other libraries; all others: `python tools/benchmark.py`. Peers that setup does not install
# are listed as not measured: pip install --no-deps batchgeneratorsv2
# About twenty minutes on two idle cores; a stopped command resumes with the next benchmark.
BESIDE = loss_peers pipeline plain_loop startup memory prepare inference

benchmark: setup ## measure speed beside other libraries: docs/results/performance.md and .json, twenty minutes
	$(FEW_THREADS) $(BIN)/python tools/benchmark.py $(BESIDE) --out docs/results/performance.md

scaling: setup ## compare the model of several ranks with steps, and measure many rows: docs/results/scaling.json
	$(FEW_THREADS) $(BIN)/python tools/benchmark.py scaling rows --out docs/results/scaling.json

benchmark-check: setup ## measure again, and list what is slower beside other libraries than in performance.json
	$(FEW_THREADS) $(BIN)/python benchmarks/check.py docs/results/performance.json $(BESIDE)

wheel: setup ## build dist/medcl3d-*.whl
	$(BIN)/python -m build --wheel

clean: ## remove build outputs, never data, runs or .venv
	rm -rf build dist docs/_build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find medcl3d tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
