# `make run`, `make lab`, `make test`, `make colab`. They make .venv and install into it; what they run is the `companion`
# command and pytest, which you can type yourself (README.md).

# The first Python that is new enough. `make PYTHON=/path/to/python run` takes another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Options for pip, such as an index that holds CPU builds of torch.
PIP ?=
# Test processes. Each holds a torch of its own, with one thread.
JOBS ?= 2

.PHONY: run lab test colab chromium clean

run: $(VENV)/installed-lab
	$(BIN)/companion run

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

# Files of tests share what they load, so each file stays in one process. They go in the order of their names: that of their
# numbers of tests, which pytest-xdist would take, leaves few and slow ones, the browser's and the builds', to the end, when
# one process waits for the other. Whole notebooks take minutes and share nothing: whoever is free takes the next.
test: $(VENV)/installed-test chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not notebooks and not colab"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m "notebooks and not colab"

# Every notebook with the versions that Colab has, in .venv-colab. The first tests make it, and have torchao in it by turns,
# so they run in one process.
colab: $(VENV)/installed-test
	$(BIN)/pytest -m "colab and not notebooks" tests/colab
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m "colab and notebooks" tests/colab

# A stamp for each set of packages: nothing is installed again until one of these files changes.
$(VENV)/installed-%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found: install one, or name it with make PYTHON=/path/to/python"; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) --constraint constraints.txt --editable '.[$*]'
	@touch $@

# The browser tests drive Debian's Chromium. Where it can be installed it is; elsewhere they are skipped, and say so.
chromium:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; fi

clean:
	rm -rf $(VENV) .venv-colab
