# SPDX-License-Identifier: BSD-3-Clause
# make setup | test | lint | format | demo | clean
#
#   PYTHON  the interpreter that the virtual environment is made with
#   VENV    the virtual environment; an existing one is used as it is, and completed
PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
# Stamps: newer than their inputs once the environment matches these.
REQUIREMENTS := $(VENV)/.lstm_fused-requirements
INSTALLED := $(VENV)/.lstm_fused-installed

CXX_FILES = $(shell find csrc tests/cpp \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print)
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(shell find csrc)
SANITIZE_BUILD := build/sanitize
DEMOS := classify_digits generate_text forecast_series

.PHONY: setup test ctest lint format demo clean force

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

test: setup
	$(MAKE) lint
	$(MAKE) ctest
	$(BIN)/python -m pytest

ctest: $(REQUIREMENTS)
	$(BIN)/cmake -S . -B $(SANITIZE_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DLSTM_BUILD_TESTS=ON -DLSTM_SANITIZE=ON
	$(BIN)/cmake --build $(SANITIZE_BUILD) $(if $(MAX_JOBS),--parallel $(MAX_JOBS))
	$(BIN)/ctest --test-dir $(SANITIZE_BUILD) --output-on-failure --no-tests=error

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

clean:
	rm -rf build dist *.egg-info lstm_fused/_C*.so lstm_fused/liblstm_fused_ops.so \
		$(INSTALLED)
