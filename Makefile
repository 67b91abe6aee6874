# `make demo` and `make test` work in a fresh clone; they create the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all test-matrix torture bench gpu-check docs lint format clean wheel-check

# constraints.txt pins the tested versions.
$(READY): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all]"
	touch $@

demo: $(READY)
	$(BIN)/occfast demo --output demo $(ARGS)

# Two processes of one thread, a file of tests at a time; WORKERS=0 runs all in one.
WORKERS ?= 2

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not cuda" $(ARGS)

# All tests, including those that take minutes each.
test-all: $(READY)
	$(BIN)/python -m pytest -m "not cuda" $(ARGS)

# Kills, full disks and mutated files for half an hour on two cores: docs/reliability.md.
torture: $(READY)
	$(BIN)/python -m tests.torture --report results/torture/report.json $(ARGS)

# Builds the wheel, looks into it, and uses it in a new environment without a compiler.
wheel-check: $(READY)
	$(BIN)/python -m tools.wheel_check $(ARGS)

# Compilers, instruction sets, Python and package versions, a cell at a time (see docs/method/native.md).
test-matrix: $(READY)
	$(BIN)/python -m tests.matrix $(ARGS)

# Comparisons with peers. JSON and a table are written to bench/results/.
bench: $(READY)
	$(BIN)/python -m bench $(ARGS)

# CUDA tests and benchmarks on a machine with a GPU, with the packages of PYTHON.
gpu-check:
	$(PYTHON) -m bench.gpu $(ARGS)

# The site, built offline in build/docs. Warnings are errors. Measured numbers are filled in first.
docs: $(READY)
	$(BIN)/python -m tools.fill_figures
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cu' 'tests/*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cu' 'tests/*.cpp' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist demo *.egg-info
