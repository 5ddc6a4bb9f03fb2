# The two commands a newcomer needs: `make demo` and `make test`. Both make .venv when it is missing.
# Every install goes through constraints.txt, so that what you run is what was tested.

PYTHON ?= python3
BIN    := .venv/bin
# The environment variables reach pip's isolated build environments, which `-c` does not (older and newer pip).
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
PIP    := -m pip install $(if $(CI),--quiet)
CHECKED := src tests docs/site examples/tutorials examples/translation_texts examples/documents $(wildcard benchmarks/*.py examples/*.py)

.PHONY: help demo test test-all lint format docs docs-serve dist stranger bench bench-serve bench-env bench-attention bench-quality
help:
	@echo "make demo      train a small model, chat with a real one, compare sentences, draw attention (5 minutes)"
	@echo "make test      run the tests (make test-all: the slow ones too); ARGS='-k name' goes to pytest"
	@echo "make lint      ruff and mypy              make format   let ruff rewrite what it can"
	@echo "make docs      the documentation site, in build/site     make docs-serve   the same on http://127.0.0.1:8000"
	@echo "make dist      sdist and wheel, checked           make stranger     the wheel, in an empty environment, runs the README"
	@echo "make bench     side by side with other libraries, writes docs/benchmarks.md"
	@echo "make bench-serve       servers under 1, 4 and 16 clients, and ten minutes at saturation"
	@echo "make bench-attention   what each mixer costs (an hour)"
	@echo "make bench-quality     how good each part is: rows on text take an hour, probes another, more seeds of rows that"
	@echo "                       are near 45 minutes; goes on where it was stopped. Both write docs/attention.md"

demo: .venv/.user
	$(BIN)/anyformer demo

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=10 -m "not slow" $(ARGS)

test-all: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy $(CHECKED)
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

format: .venv/.dev
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

docs: .venv/.docs
	$(BIN)/python -m docs.site

docs-serve: .venv/.docs
	$(BIN)/python -m docs.site --serve

dist: .venv/.dist
	rm -rf dist
	$(PINNED) $(BIN)/python -m build $(if $(CI),--quiet)
	$(BIN)/python -m twine check --strict dist/*

# An environment that holds the wheel, the extras of the README's `pip install .`, and pytest runs all that the README shows.
EXTRAS = $(patsubst X%,%,$(or $(shell sed -n "s/.*pip install '*\.\(\[[a-z,]*\]\)*.*/X\1/p" README.md | head -n 1),X[plot]))
stranger: dist
	rm -rf build/stranger
	$(PYTHON) -m venv build/stranger/env
	mkdir build/stranger/tests
	cp README.md Makefile build/stranger && cp tests/test_readme.py build/stranger/tests
	$(PINNED) build/stranger/env/bin/python $(PIP) "$$(echo dist/*.whl)$(EXTRAS)" pytest
	cd build/stranger && env -u PYTHONPATH OMP_NUM_THREADS=1 env/bin/python -m pytest -q -c /dev/null --rootdir . tests

bench: .venv/.bench bench-env
	$(BIN)/python -m benchmarks $(ARGS)

bench-serve: .venv/.bench .venv-llamacpp/bin/llama-server
	$(BIN)/python -m benchmarks serve $(ARGS)
	$(BIN)/python -m benchmarks.soak

bench-attention: .venv/.bench
	$(BIN)/python -m benchmarks.attention $(ARGS)

bench-quality: .venv/.dev
	$(BIN)/python -m benchmarks.quality $(ARGS)

# Environments. A stamp file says which extras .venv holds; a changed requirement installs again.

.venv/.user: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PINNED) $(BIN)/python $(PIP) -e '.[plot]'
	@touch $@

.venv/.dev: .venv/.user
	$(PINNED) $(BIN)/python $(PIP) -e '.[dev]'
	$(PINNED) $(BIN)/python $(PIP) --no-deps dalle-pytorch  # an oracle; the tests need none of what it would bring
	@touch $@

.venv/.docs: .venv/.user
	$(PINNED) $(BIN)/python $(PIP) -e '.[docs]'
	@touch $@

.venv/.dist: .venv/.user
	$(PINNED) $(BIN)/python $(PIP) -e '.[dist]'
	@touch $@

.venv/.bench: .venv/.dev
	$(PINNED) $(BIN)/python $(PIP) -e '.[bench]'
	@touch $@

# Two peers cannot live in .venv: litgpt wants an older huggingface-hub, llama.cpp is compiled (5 to 20 minutes).
bench-env: .venv-litgpt/.done .venv-llamacpp/.done .venv-timm/.done

.venv-%/.done: benchmarks/requirements-%.txt
	$(PYTHON) -m venv .venv-$*
	PIP_CONSTRAINT=$< PIP_BUILD_CONSTRAINT=$< .venv-$*/bin/python $(PIP) -r $<
	@touch $@

# llama.cpp's server, of the sources that came with its Python package: a C++ compiler and cmake, 10 to 20 minutes.
.venv-llamacpp/bin/llama-server: .venv-llamacpp/.done
	rm -rf build/llamacpp && mkdir -p build/llamacpp
	.venv-llamacpp/bin/python -m pip download --no-deps --no-build-isolation --no-binary :all: -d build/llamacpp \
		"$$(grep '^llama-cpp-python==' benchmarks/requirements-llamacpp.txt)"
	tar -xzf build/llamacpp/llama_cpp_python-*.tar.gz -C build/llamacpp --strip-components=1
	cmake -S build/llamacpp/vendor/llama.cpp -B build/llamacpp/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
		-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	cmake --build build/llamacpp/build --target llama-server -j2
	cp build/llamacpp/build/bin/llama-server $@

# llama.cpp's AMX kernels crash on some processors that have them (ggml-org/llama.cpp issue 20824): left out. pip's
# cache may hold a build that has them, so it is not asked.
.venv-llamacpp/.done .venv-llamacpp/bin/llama-server: export CFLAGS := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
.venv-llamacpp/.done .venv-llamacpp/bin/llama-server: export CXXFLAGS := $(CFLAGS)
.venv-llamacpp/.done: export CMAKE_ARGS := -DLLAVA_BUILD=OFF
.venv-llamacpp/.done: export PIP_NO_CACHE_DIR := 1
