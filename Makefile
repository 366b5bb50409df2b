# Everything starts here: `make help` lists the commands.

VENV ?= .venv
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do "$$name" -c '$(SUPPORTED)' 2>/dev/null && echo "$$name" && break; done)
SERIES ?=
EXECUTIONS ?= 1000000
HISTORIES ?= 100000
KILLS ?= 500
MINUTES ?= 240
# More arguments for pip, for example `make setup PIP_ARGS="--extra-index-url <index of CPU builds of PyTorch>"`.
PIP_ARGS ?=

# Data for the tests that need real images; without it they are skipped and say so.
ifneq ($(wildcard ../shared/data/README.md),)
export NODULE_NODE_TEST_DATA ?= $(abspath ../shared/data)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt $(PIP_ARGS)
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
VIEWER := $(VENV)/.installed-viewer

.PHONY: help setup demo test check viewer-check real-scans fuzz damage bench-detection simulate-faults chaos soak clean
.DEFAULT_GOAL := help

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | while IFS='|' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

setup: $(DEV) ## make .venv with everything that development and tests need

demo: $(BASE) ## a phantom CT goes in, its report comes back: demo-out/ (SERIES=<folder>: your own CT series)
	$(BIN)/python -m demo.run $(if $(SERIES),--series "$(SERIES)")

test: $(DEV) ## install what the tests need, check the code, run every test
	bash tests/install_debian.sh
	$(MAKE) --no-print-directory check
	@# Two workers can starve a test of processes and deadlines: what failed has one more try, alone, and is shown.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -r s || \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -r s

check: $(DEV) ## style, types, who may import whom, generated documents in step
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scp_node.cli.generate_docs --check

viewer-check: $(VIEWER) ## open a report over its CT in OHIF and measure what is drawn (root, Orthanc, chromium, npm)
	$(BIN)/python -m tests.viewer.check $(if $(SERIES),--series "$(SERIES)")

real-scans: $(DEV) ## real CT series into a running node and Orthanc: SERIES="<folder> ..." (root, Orthanc, dcmtk)
	$(BIN)/python -m tests.acceptance.real_scans $(SERIES)

fuzz: $(DEV) ## a million damaged inputs: an hour or more, goes on where it stopped (fuzz-out/ledger.json; EXECUTIONS=...)
	mkdir -p fuzz-out
	$(BIN)/python -m tests.fuzz --executions $(EXECUTIONS) --ledger fuzz-out/ledger.json

damage: $(DEV) ## 500 damaged chests through a node: nothing missing may end in a clean report (docs/reliability.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.damage 500

bench-detection: $(DEV) ## the time of one scan, and beside MONAI's network (SERIES=<folder>: your own CT); RUNS=<folder>: the table of finished runs too
	$(BIN)/python -m bench.bench_detect $(if $(SERIES),--series "$(SERIES)")
	$(BIN)/python -m bench.bench_peers --peer-folder peer-out
	$(if $(RUNS),$(BIN)/python -m bench.detection_table --left-out $(RUNS)/left-out --benchmark $(RUNS)/benchmark \
	  --probe $(RUNS)/probe.json --results docs/detection.md)

simulate-faults: $(DEV) ## 100,000 histories full of crashes and faults: hours, goes on where it stopped (SEED=<n>: one of them again)
	mkdir -p simulate-out
	$(BIN)/python -m tests.simulator $(if $(SEED),--seed $(SEED) --trace,--histories $(HISTORIES) --ledger simulate-out/ledger.json)

chaos: $(DEV) ## 500 SIGKILLs on each database: hours, goes on where it stopped (DATABASE=sqlite: one alone)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --database $(or $(DATABASE),both) --kills $(KILLS) --out chaos-out \
	  $(if $(SEED),--seed $(SEED))

soak: $(DEV) ## studies flow for hours: memory, files, threads and database stay flat (MINUTES=240)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $(MINUTES) --database $(or $(DATABASE),sqlite) --out soak-out

clean: ## remove what the commands above made, the environment too
	rm -rf $(VENV) .npm peer-out demo-out viewer-out fuzz-out simulate-out chaos-out soak-out build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || \
	  { echo "nodule-node needs Python 3.11, 3.12 or 3.13, and none was found: install one, or say make PYTHON=<path>." >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)" || \
	  { echo "The virtual environment could not be made; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }

$(BASE): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing pinned packages into $(VENV) (about 2 GB, once)"
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(DEV): $(BASE)
	$(PIP) --no-build-isolation --editable '.[train,dev]'
	@touch $@

$(VIEWER): $(DEV)
	$(PIP) --no-build-isolation --editable '.[viewer]'
	@touch $@
