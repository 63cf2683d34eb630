# make serve    install, build, package and serve the default model; classify a picture with and without AFD
# make stop     stop that server
# make serve-triton, stop-triton  the same with Triton, which has an environment of its own; no Java, no container
# make test     linters, types, C++ tests, Python tests with real servers, TorchServe and Triton
# make test-triton  the tests of Triton alone
# make asan     C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, as `make test` runs them
# make tsan     C++ tests, with their threads and batches, under ThreadSanitizer
# make fuzz     the fuzzers under ASan and UBSan for SECONDS in all; needs clang, keeps its corpora for the next run
# make collection-check FOLDERS="..."  reads every JPEG below the folders as we do and as libjpeg-turbo does, under ASan
# make wheel    an sdist and a wheel that holds libjpeg-turbo, tested in an environment of its own, in dist
# make audit    look up the pinned packages in the database of known holes; what it cannot look up fails it too
# make format   rewrite the sources as the linters want them
# make clean    remove what was built, and stop the server
#
# Variables:
#   PYTHON       the Python to make the environment with
#   VENV         where that environment lies
#   VENV_TRITON  where Triton's lies: its Python backend needs an older NumPy
#   TRITON       no leaves Triton's tests, and its environment, out of `make test`
#   TOOLS        no leaves out the tests with a real Prometheus and a real nginx, unpacked from Debian's packages
#   TORCH_SPEC   which torch to install; constraints.txt must allow it
#   PIP_OPTIONS  options for every pip install, for example an index that holds CPU builds of torch
#   MODEL        what to serve: a shipped name, a run's directory or an exported model's
#   PROCESSES    how many of pytest run at a time; each gets whole files, and a server of its own where they need one
#   SECONDS      how long to fuzz
#   SERVE_OPTIONS  options, but not --state-dir, for `afd-serve serve torchserve` or `... serve triton`, for example --port 9000

PYTHON ?= python3
VENV ?= .venv
VENV_TRITON ?= .venv-triton
TRITON ?= yes
TOOLS ?= yes
TORCH_SPEC ?= torch==2.13.0
PIP_OPTIONS ?=
MODEL ?= efficientnet-lite0
SERVE_OPTIONS ?=
PROCESSES ?= 2
SECONDS ?= 120

BIN := $(VENV)/bin
BIN_TRITON := $(VENV_TRITON)/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt $(PIP_OPTIONS)
PIP := $(BIN)/python $(PIP_INSTALL)
PIP_TRITON := $(BIN_TRITON)/python $(PIP_INSTALL)
STATE := .serve/torchserve
STATE_TRITON := .serve/triton
UNPACKED := .tools

# An installation is out of date when what it is built from has changed; Python files are used from where they lie.
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*.cpp csrc/*.h)
CPP_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h benchmarks/*.cpp)

.PHONY: serve stop serve-triton stop-triton test test-triton lint cpp-test py-test format clean
.PHONY: asan tsan fuzz collection-check wheel audit
.DELETE_ON_ERROR:

serve: $(VENV)/.installed
	@$(BIN)/afd-serve serve torchserve --model $(MODEL) --state-dir $(STATE) $(SERVE_OPTIONS)

stop:
	@if [ -x $(BIN)/afd-serve ]; then $(BIN)/afd-serve stop --state-dir $(STATE); else echo "nothing runs"; fi

serve-triton: $(VENV_TRITON)/.installed
	@$(BIN_TRITON)/afd-serve serve triton --model $(MODEL) --state-dir $(STATE_TRITON) $(SERVE_OPTIONS)

stop-triton:
	@if [ -x $(BIN_TRITON)/afd-serve ]; then $(BIN_TRITON)/afd-serve stop --state-dir $(STATE_TRITON); \
	  else echo "nothing runs"; fi

# One after the other, whatever -j says: pytest's verdict comes last.
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory cpp-test
	$(MAKE) --no-print-directory py-test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for model in model_repository/*/*/1/model.py; do $(BIN)/mypy "$$model" || exit 1; done  # all have one module's name
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

cpp-test: asan

asan: SANITIZE := address,undefined
tsan: SANITIZE := thread
tsan: CHOICE := --tests-regex threads
asan tsan: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" -DCMAKE_BUILD_TYPE=Release \
	  -DAFD_PYTHON=OFF -DAFD_TESTS=ON -DAFD_WERROR=ON -DAFD_SANITIZE=$(SANITIZE)
	$(BIN)/cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --output-on-failure $(CHOICE)

fuzz: $(VENV)/.installed-dev
	@PATH="$(abspath $(BIN)):$$PATH" sh scripts/fuzz.sh $(SECONDS)

# Pictures that others made, found elsewhere: nothing of them is in the project.
collection-check: asan
	build/asan/collection_check --slow 5 $(FOLDERS)

wheel: $(VENV)/.installed-dev
	@PATH="$(abspath $(BIN)):$$PATH" sh scripts/wheel.sh "$(TORCH_SPEC)" $(PIP_OPTIONS)

TRITON_PYTHON := $(abspath $(BIN_TRITON))/python

# A process that crashes is not replaced: pytest would wait for its other tests without an end.
py-test: $(VENV)/.installed-dev $(if $(filter no,$(TRITON)),,$(VENV_TRITON)/.installed)
	@$(if $(filter no,$(TOOLS)),,sh scripts/tools.sh $(UNPACKED))
	PATH="$(abspath $(UNPACKED))/usr/bin:$(abspath $(UNPACKED))/usr/sbin:$$PATH" \
	  $(if $(filter no,$(TRITON)),,AFD_TRITON_PYTHON="$(TRITON_PYTHON)") \
	  $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --max-worker-restart 0

test-triton: $(VENV)/.installed-dev $(VENV_TRITON)/.installed
	AFD_TRITON_PYTHON="$(TRITON_PYTHON)" $(BIN)/python -m pytest tests/serving/test_triton*.py

# An environment of its own: the auditor's packages are none of ours.
audit:
	@$(PYTHON) -m venv build/audit
	@build/audit/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_OPTIONS) pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	-@[ ! -x $(BIN)/afd-serve ] || $(BIN)/afd-serve stop --state-dir $(STATE)
	-@[ ! -x $(BIN_TRITON)/afd-serve ] || $(BIN_TRITON)/afd-serve stop --state-dir $(STATE_TRITON)
	rm -rf $(VENV) $(VENV_TRITON) $(UNPACKED) build dist .serve .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find afd_serve -name '*.so' -delete

$(VENV)/.environment: scripts/bootstrap.sh
	@sh scripts/bootstrap.sh $(PYTHON)
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Torch comes first and alone, so that nothing else decides which build it is.
$(VENV)/.installed: $(VENV)/.environment $(SOURCES)
	@echo "installing $(TORCH_SPEC)"
	@$(PIP) "$(TORCH_SPEC)"
	@echo "building and installing afd-serve for TorchServe, its client, and what packages for Triton"
	@$(PIP) --editable ".[torchserve,triton]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.environment $(SOURCES)
	@echo "installing $(TORCH_SPEC)"
	@$(PIP) "$(TORCH_SPEC)"
	@echo "building and installing afd-serve for TorchServe and for development"
	@AFD_WERROR=1 $(PIP) --editable ".[torchserve,triton,dev]"
	@touch $(VENV)/.installed $@

$(VENV_TRITON)/.environment: scripts/bootstrap.sh
	@sh scripts/bootstrap.sh $(PYTHON) without-java
	@echo "making the environment in $(VENV_TRITON)"
	@$(PYTHON) -m venv $(VENV_TRITON)
	@touch $@

$(VENV_TRITON)/.installed: $(VENV_TRITON)/.environment $(SOURCES)
	@echo "installing $(TORCH_SPEC)"
	@$(PIP_TRITON) "$(TORCH_SPEC)"
	@echo "building and installing afd-serve for Triton"
	@$(PIP_TRITON) --editable ".[triton,triton-server]"
	@touch $@
