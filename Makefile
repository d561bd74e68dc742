# make demo | test | check | bench    on any machine with Python >= 3.10 and a C++ compiler; everything goes to .venv
# make report                         the tables of README.md, from benchmarks/results
# make docs                           the documentation, in build/docs; needs Python >= 3.11
# make emulation                      the CUDA kernels for the CPU, for RADCONV_EMULATE_CUDA=1
# make gpu OUT=folder                 on a machine with an NVIDIA GPU, with its own Python and torch, without network
# make clean                          removes what was built, and .venv
#
# Variables: JOBS (2: processes for the tests), PYTHON (python3), RADCONV_CUDA (auto, on, off), RADCONV_CUDA_ARCHS, CXX,
# OUT.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps

BUILD_INPUTS := $(shell find csrc) CMakeLists.txt setup.py pyproject.toml
CXX_FILES     = $(shell find benchmarks csrc tests/emulation -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

# the longest tests first, so that no process is left with one of them at the end
SLOW := tests/test_emulation.py tests/test_resources.py tests/test_triton.py tests/test_cuda.py

.PHONY: demo test check bench report docs docs-python emulation gpu clean FORCE
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two pips in one environment disturb each other

demo: $(STAMPS)/demo $(STAMPS)/install
	$(BIN)/python -m radconv_ext demo

test: $(STAMPS)/test $(STAMPS)/released $(STAMPS)/install emulation
	$(BIN)/pytest -q --durations=15 -n $(or $(JOBS),2) $(SLOW) tests

emulation: $(STAMPS)/test
	$(BIN)/python tests/emulation/build.py

check: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy radconv_ext

bench: BENCH_JSON = $(or $(OUT),benchmarks/results/bench.json)
bench: $(STAMPS)/test $(STAMPS)/released $(STAMPS)/install
	mkdir -p $(dir $(BENCH_JSON))
	$(BIN)/pytest benchmarks --benchmark-json=$(BENCH_JSON)

report: $(STAMPS)/demo $(STAMPS)/install
	$(BIN)/python -m benchmarks.report --publish

# -E: all pages anew, or a warning would be seen in the first run alone
docs: docs-python $(STAMPS)/docs $(STAMPS)/install
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

docs-python: $(STAMPS)/venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make docs needs Python 3.11 or newer, $(VENV) has `$(BIN)/python --version 2>&1`" >&2; exit 1; }

gpu:
	@PYTHON="$(PYTHON)" benchmarks/gpu.sh "$(OUT)"

clean:
	rm -rf $(VENV) build dist *.egg-info radconv_ext/_build.json radconv_ext/*.so docs/_generated docs/__pycache__
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find radconv_ext triton_kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment: a stamp per step, so that reruns are quick ----------------------------------------------------

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "radconv_ext needs Python 3.10 or newer, $(PYTHON) is `$(PYTHON) --version 2>&1`" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# All but released.txt contain run.txt, which is installed first and alone: torch is by far the largest.
$(STAMPS)/run: requirements/run.txt $(STAMPS)/venv
	$(BIN)/python -m pip install -r $<
	touch $@

$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/lint $(STAMPS)/docs: $(STAMPS)/%: requirements/%.txt $(STAMPS)/run
	$(BIN)/python -m pip install -r $<
	touch $@

$(STAMPS)/test $(STAMPS)/docs: requirements/demo.txt

$(STAMPS)/released: requirements/released.txt $(STAMPS)/venv
	$(BIN)/python -m pip install --no-deps -r $<
	touch $@

# Rewritten only when a variable that the build reads has changed.
$(STAMPS)/settings: FORCE $(STAMPS)/venv
	@echo '$(RADCONV_CUDA) $(RADCONV_CUDA_ARCHS) $(CXX)' | cmp -s - $@ || \
	  echo '$(RADCONV_CUDA) $(RADCONV_CUDA_ARCHS) $(CXX)' > $@

# Editable, so that edits of Python files need no step; any change under csrc builds again.
$(STAMPS)/install: $(BUILD_INPUTS) $(STAMPS)/settings $(STAMPS)/run
	$(BIN)/python -m pip install --no-deps -e .
	touch $@
