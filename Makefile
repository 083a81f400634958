# SPDX-License-Identifier: BSD-3-Clause
# make setup | test | lint | format | demo | bench | cuda-report | gpu | clean
#
#   BENCH   arguments of 'make bench', as BENCH="--suite step --quick"
#   GPU     arguments of 'make gpu', as GPU="--quick"
#   PYTEST  arguments of pytest in 'make test'; by default those that spread it over the processors
#   PYTHON  the interpreter that the virtual environment is made with; the one that runs 'make gpu'
#   VENV    the virtual environment; an existing one is used as it is, and completed
PYTEST ?= -n auto --maxprocesses 8 --dist worksteal
PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
# Stamps: newer than their inputs once the environment matches these.
REQUIREMENTS := $(VENV)/.lstm_fused-requirements
INSTALLED := $(VENV)/.lstm_fused-installed
PEERS := $(VENV)/.lstm_fused-peers

CXX_FILES = $(shell find csrc tests \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print)
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc)
SANITIZE_BUILD := build/sanitize
DEMOS := classify_digits generate_text forecast_series

.PHONY: setup system-packages test ctest lint format demo bench cuda-report gpu clean force

setup: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(REQUIREMENTS): requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

# Runs too where the module is missing though the stamp is there, as after 'git clean'.
$(INSTALLED): $(REQUIREMENTS) $(BUILD_INPUTS) \
		$(if $(wildcard lstm_fused/_C.*.so),,force)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	touch $@

# What executes CUDA kernels on the CPU: nvcc, PyPI's where the machine has none, and Boost.Context,
# which runs the threads. Where they cannot be installed those tests are skipped, and say so.
NVCC := $(VENV)/.lstm_fused-nvcc
HAS_NVCC := $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
$(NVCC): requirements-nvcc.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-nvcc.txt && touch $@ || true

BOOST_CONTEXT := /usr/include/boost/context/detail/fcontext.hpp
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n)
system-packages: $(if $(HAS_NVCC),,$(NVCC))
	if [ ! -e $(BOOST_CONTEXT) ] && command -v apt-get >/dev/null; then \
		$(AS_ROOT) apt-get update -qq && \
		$(AS_ROOT) apt-get install -qq -y --no-install-recommends libboost-context-dev || true; \
	fi

test: setup system-packages
	$(MAKE) lint
	$(MAKE) ctest
	$(BIN)/python -m pytest $(PYTEST)

ctest: $(REQUIREMENTS)
	$(BIN)/cmake -S . -B $(SANITIZE_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DLSTM_BUILD_TESTS=ON -DLSTM_SANITIZE=ON
	$(BIN)/cmake --build $(SANITIZE_BUILD) $(if $(MAX_JOBS),--parallel $(MAX_JOBS))
	$(BIN)/ctest --test-dir $(SANITIZE_BUILD) --output-on-failure --no-tests=error --parallel 2

lint: $(REQUIREMENTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(REQUIREMENTS)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

demo: setup
	for name in $(DEMOS); do $(BIN)/python examples/$$name.py || exit 1; done

$(PEERS): requirements-bench.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-bench.txt
	touch $@

# Results go to benchmarks/results/. At most seven minutes, whatever the machine.
bench: setup $(PEERS)
	$(BIN)/python -m benchmarks $(BENCH)

# What is known of the CUDA kernels without a GPU: benchmarks/results/cuda_static.md. Needs nvcc. The
# first run compiles every kernel for every target, in about ten minutes on two cores.
cuda-report: setup system-packages
	$(BIN)/python -m benchmarks.cuda_report $(if $(MAX_JOBS),--jobs $(MAX_JOBS))

# Build for the GPU of this machine, test and measure. Takes PYTHON's environment as it is, with its
# torch for CUDA, and fetches nothing.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

clean:
	rm -rf build dist *.egg-info lstm_fused/_C*.so lstm_fused/liblstm_fused_ops.so \
		$(INSTALLED)
