# SPDX-License-Identifier: BSD-3-Clause
# make setup | test | test-versions | lint | format | demo | docs | bench | cuda-report | gpu | wheel |
#      test-wheel | clean
#
#   BENCH   arguments of 'make bench', as BENCH="--suite step --quick"
#   GPU     arguments of 'make gpu', as GPU="--only build,parity"
#   PYTEST  arguments of pytest in 'make test'; by default those that spread it over the processors
#   PYTHON  the interpreter that the virtual environment is made with; the one that runs 'make gpu'; the
#           one whose wheel 'make test-wheel' installs
#   VENV    the virtual environment; an existing one is used as it is, and completed
#   VERSIONS  the versions of torch that 'make test-versions' and 'make test-wheel' test, as
#             VERSIONS=2.11.0
PYTEST ?= -n auto --maxprocesses 8 --dist worksteal
PYTHON ?= python3
VENV ?= .venv
VERSIONS ?= 2.11.0 2.14.1

BIN := $(abspath $(VENV))/bin
# Stamps: newer than their inputs once the environment matches these.
REQUIREMENTS := $(VENV)/.lstm_fused-requirements
INSTALLED := $(VENV)/.lstm_fused-installed
PEERS := $(VENV)/.lstm_fused-peers
SPHINX := $(VENV)/.lstm_fused-sphinx
GALLERY := $(VENV)/.lstm_fused-gallery

CXX_FILES = $(shell find csrc tests tools benchmarks examples lstm_fused/include \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print)
BUILD_INPUTS := pyproject.toml setup.py tools/extensions.py tools/nvcc.py CMakeLists.txt \
	$(shell find cmake csrc)
SANITIZE_BUILD := build/sanitize
DEMOS := classify_digits generate_text forecast_series

.PHONY: setup system-packages test test-versions $(VERSIONS:%=test-version-%) ctest lint format demo docs bench cuda-report gpu wheel test-wheel clean force

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
# which runs the threads and which the system's packages have. Without them those tests are skipped.
NVCC := $(VENV)/.lstm_fused-nvcc
HAS_NVCC := $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
$(NVCC): requirements-nvcc.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-nvcc.txt && touch $@ || true

BOOST_CONTEXT := /usr/include/boost/context/detail/fcontext.hpp
system-packages: $(if $(HAS_NVCC),,$(NVCC))
	@if [ ! -e $(BOOST_CONTEXT) ]; then \
		echo "Tests of the CUDA kernels will be skipped: they need Boost.Context. On Debian and Ubuntu:"; \
		echo "    sudo apt-get install libboost-context-dev"; \
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

# The oldest torch that is declared and the newest, each in an environment of its own, kept between
# runs. What is tested there is the module that 'make setup' has built, since one binary is to serve
# every torch >= 2.11 (it keeps to the stable ABI); a second build in this tree would replace it. The
# code of csrc/torch is compiled against that version's headers too (tools/other_torch.py), for those
# who build there; and where nvcc is, the CUDA module, for one architecture, which is loaded beside the
# module of 'make setup' from a package of its own. An environment takes some 5 GB: PyPI's torch is a
# CUDA build, which does not load without its libraries; what could be left out comes to a sixth.
# Inductor's cache is each version's own: two versions give their precompiled headers one name, and
# break each other's build.
test-versions: $(VERSIONS:%=test-version-%)

VERSION_VENV = .venv-torch-$*
VERSION_PYTHON = $(VERSION_VENV)/bin/python
.venv-torch-%/.lstm_fused-requirements: requirements-versions.txt | $(BIN)/python
	$(BIN)/python -m venv $(VERSION_VENV)
	$(VERSION_PYTHON) -m pip install --disable-pip-version-check -q torch==$* \
		-r requirements-versions.txt
	touch $@

# What meets torch: ops, modules, derivatives and transforms, compilation, conversion. Numbers are the
# kernels' own whatever the torch. Left out is what depends on the process, whose limits and second
# loads a CUDA build of torch meets in ways of its own, or on its default device.
VERSION_TESTS = $(filter-out %/test_loading.py %/test_allocation_errors.py %/test_default_device.py, \
	$(sort $(wildcard tests/ops/test_*.py tests/module/test_*.py tests/compile/test_*.py) \
	$(addprefix tests/autograd/test_,$(addsuffix .py,autocast cell_transforms flops function_apply \
	functorch in_place without_private_names)) \
	$(addprefix tests/conversion/test_,$(addsuffix .py,convert convert_places)) \
	tests/options/test_masks.py tests/options/test_module.py tests/quantized/test_quantized_modules.py \
	tests/stream/test_stream.py tests/trace/test_values.py))
VERSION_BUILD = build/torch-$*

$(VERSIONS:%=test-version-%): test-version-%: setup .venv-torch-%/.lstm_fused-requirements
	$(BIN)/python -m tools.other_torch $(VERSION_VENV) $(VERSION_BUILD)
	PYTHONPATH=$(CURDIR) TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VERSION_BUILD)/inductor \
		$(VERSION_PYTHON) -m pytest $(PYTEST) $(VERSION_TESTS)
	if [ -e $(VERSION_BUILD)/lstm_fused ]; then \
		LSTM_FUSED_NEED_CUDA_MODULE=1 $(VERSION_PYTHON) -m pytest \
			-o pythonpath="$(VERSION_BUILD) tests" tests/cuda/test_cuda_module.py; \
	fi

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

$(SPHINX): requirements-docs.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-docs.txt
	touch $@

# Models and recordings of the gallery's programs. Those whose packages do not install are not run.
$(GALLERY): requirements-gallery.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r requirements-gallery.txt \
		&& touch $@ || true

# The site, in build/docs. Fetches nothing once the packages are there; a warning or a link that leads
# nowhere is an error.
docs: setup $(SPHINX) $(GALLERY)
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/docs
	$(BIN)/python docs/check_links.py build/docs

$(PEERS): requirements-bench.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-bench.txt
	touch $@

# Results go to benchmarks/results/. At most seven minutes, whatever the machine.
bench: setup $(PEERS)
	$(BIN)/python -m benchmarks $(BENCH)

# What is known of the CUDA kernels without a GPU: benchmarks/results/cuda_static.md. Needs nvcc. The
# first run compiles every kernel for every target, in about ten minutes on two cores.
cuda-report: setup system-packages
	$(BIN)/python -m tools.cuda_report $(if $(MAX_JOBS),--jobs $(MAX_JOBS))

# Build for the GPU of this machine, test and measure. Takes PYTHON's environment as it is, with its
# torch for CUDA, and fetches nothing.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

# The sdist and, from it, a wheel for each Python that is found as python3.10, python3.11 and so on,
# into dist/. Without CUDA's kernels, unless LSTM_FUSED_CUDA=1 asks for them.
wheel:
	$(PYTHON) -m tools.wheels

# PYTHON's wheel of dist/, the very same file, beside several versions of torch. An environment takes
# some 5 GB; there is one at a time.
test-wheel: VERSIONS := 2.11.0 2.13.0 2.14.1
test-wheel:
	$(PYTHON) -m tools.try_wheel $(VERSIONS)

clean:
	rm -rf build dist docs/gallery *.egg-info lstm_fused/_C*.so lstm_fused/liblstm_fused_ops.so lstm_fused/lib \
		$(INSTALLED)
