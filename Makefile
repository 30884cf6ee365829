# With a GPU, name the build of torch that fits it: make setup TORCH="torch==2.13.0"
# (the registry's default build brings CUDA on Linux), or TORCH="torch==2.13.0 --index-url URL"
# with the index that PyTorch names for your driver.
TORCH ?= torch==2.13.0
PYTHON ?= python3

# Published losses that tests compare with; alone, since their packages want torchvision, which does not fit every build of torch.
ORACLES := 'lightly==1.6.0'

VENV ?= .venv
BIN := $(VENV)/bin
# Two processes beside each other are faster than two threads in each operation on small volumes.
FEW_THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# The demo with fewer patients, steps and runs: to see that it works, not to learn anything.
SMALL := out_dir=runs/demo_small replicates=1 'vary.num_labelled=[2]' \
	prepare.out=data/demo_small prepare.options.num_patients=8 \
	pretrain.data.root=data/demo_small pretrain.train.steps=2 pretrain.train.samples_per_step=2 pretrain.train.warmup_steps=1 \
	finetune.set.data.root=data/demo_small finetune.set.train.steps=2 finetune.set.train.warmup_steps=1

# What `make mutation` changes: files or folders. The default is what passes; any of medcl3d/ may be given.
FILES ?= medcl3d/evaluation/bootstrap.py medcl3d/pairs/boxes.py medcl3d/views/intensity.py medcl3d/objectives/projector.py

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-small test test-slow mutation lint reliability security audit pictures measured recovery wheel clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## make .venv with everything in it

$(VENV)/.stamp: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps $(ORACLES)
	touch $@

demo: setup ## compare ways to define pairs on simulated scans; ends with the path of the report
	$(BIN)/medcl3d compare configs/demo/demo.yaml

demo-small: setup ## the same in miniature, to see that all of it runs
	$(BIN)/medcl3d compare configs/demo/demo.yaml $(SMALL)

test: setup ## the tests that take seconds
	$(FEW_THREADS) $(BIN)/python -m pytest -n 2 -m 'not slow' --durations 10

test-slow: setup ## the tests that take minutes, and properties on a thousand random collections each
	$(BIN)/python -m pytest -m slow --durations 10
	HYPOTHESIS_PROFILE=thorough $(FEW_THREADS) $(BIN)/python -m pytest -n 2 tests/pairs

mutation: setup ## changes of one operation in FILES that no test notices; minutes per file
	$(FEW_THREADS) $(BIN)/python tests/mutation/run.py $(FILES)

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

reliability: setup ## meet every fault once and write the table of docs/reliability.md
	$(FEW_THREADS) $(BIN)/python docs/reliability.py

security: setup ## look for dangerous patterns in our own code
	$(BIN)/bandit --quiet --recursive -ll medcl3d tools

audit: setup ## ask the network for known vulnerabilities of what is installed
	$(BIN)/pip-audit --skip-editable

pictures: setup ## draw the pictures of docs/strategies again
	$(BIN)/medcl3d prepare simulated - --out data/simulated
	$(BIN)/python docs/strategies/draw.py

# The real sets that the pages of the strategies are measured on.
SETS ?= ../shared/data

measured: setup ## measure the distances of each strategy's pairs on real scans again
	for set in ixi40 ms_longitudinal; do test -d data/measured/$$set || \
		$(BIN)/medcl3d prepare bids $(SETS)/$$set --out data/measured/$$set 'spacing_mm=[4, 4, 4]' || exit 1; done
	$(FEW_THREADS) $(BIN)/python docs/strategies/measure.py

recovery: setup ## what each strategy keeps and drops of known factors: docs/strategies/recovery.md, an hour or more
	test -d data/recovery/store || $(BIN)/medcl3d prepare simulated - --out data/recovery num_patients=80 test_fraction=0.4
	$(BIN)/python docs/strategies/recovery.py

wheel: setup ## dist/medcl3d-*.whl
	$(BIN)/python -m build --wheel

clean: ## remove what was built, never data, runs or .venv
	rm -rf build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find medcl3d tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
