# make train   set up, make synthetic X-rays, train recipes/quickstart.yaml on them
# make test    set up, run the tests; TESTS=tests/data a part of them, JOBS=4 files at once
# make lint    ruff, mypy, codespell
# make docs    the documentation as a site in site/, with links checked: open site/index.html
# make faults  200 runs of 1, 2 and 4 ranks with a fault each, as root with strace (hours); CASES=20 fewer
# make fuzz    a million mutated inputs through every reader (hours); INPUTS=20000 fewer
# make audit   known vulnerabilities of the packages in .venv
# make slurm   install SLURM (Debian packages, as root) and test slurm/train.sbatch on simulated nodes
# The first call sets up .venv (about 6 GB); later ones reuse it. PYTHON=python3.12 picks another Python.

PYTHON ?= python3
REQUIREMENTS ?= requirements/cuda13.txt
BIN := .venv/bin
READY := .venv/.ready
PHANTOM := data/phantom
JOBS ?= 2
CASES ?= 200
INPUTS ?= 1000000

.PHONY: setup train test lint docs faults fuzz audit slurm clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): setup.cfg setup.py pyproject.toml $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "distcxr needs Python 3.11 or newer, and '$(PYTHON)' is not. Install it, then: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
	  "Python's venv is missing. Install it with: sudo apt-get install -y make python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -e '.[dev]'
	@touch $@

train: $(READY)
	$(BIN)/distcxr phantom $(PHANTOM) --images 4000 --size 128
	$(BIN)/distcxr train recipes/quickstart.yaml data.root=$(PHANTOM)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

faults: $(READY)
	$(BIN)/python tests/faults/campaign.py --cases $(CASES) --seed $$(date +%s)

fuzz: $(READY)
	$(BIN)/python tests/fuzz/run.py --inputs $(INPUTS) --seed $$(date +%s)

audit: $(READY)
	$(BIN)/python .ci/audit.py

slurm: $(READY)
	DISTCXR_INSTALL_SLURM=1 DISTCXR_SLURM_ALL=1 $(BIN)/python -m pytest tests/slurm

clean:
	rm -rf .venv data/phantom build *.egg-info
