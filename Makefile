# `make mnist` and `make test` work on a fresh machine: they make .venv on first use (see .ci/install).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help mnist test interruptions sanitize lint docs bench wheel try-wheel clean
help:
	@echo "make mnist      train a sparse network on MNIST (real data: DATA=folder or \$$SPARSIFY_DATA)"
	@echo "make test       the test suite"
	@echo "make interruptions  fail at every line, operator and allocation of an evolution (hours)"
	@echo "make sanitize   test the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation, in docs/_build"
	@echo "make bench      time layers, training steps and evolution beside other libraries"
	@echo "make wheel      dist/*.whl, one for every Python of this platform"
	@echo "make try-wheel  install it in an empty environment (TORCH=torch==2.13.0 chooses) and train"
	@echo "make clean      remove .venv and all that was built"

mnist: .venv/installed
	$(BIN)/python examples/mnist.py $(if $(DATA),--data $(DATA))

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

interruptions: .venv/installed
	$(BIN)/python -m pytest tests/test_interruptions.py -m slow -s

sanitize: .venv/installed
	sh .ci/sanitize tests/kernels tests/native tests/layers/test_convolution.py tests/evolution

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	rm -rf docs/_build
	$(BIN)/python -m sphinx -n -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: .venv/rivals
	$(BIN)/python examples/benchmark.py

.venv/rivals: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet pybind11
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps \
	    sparselab==0.2.2 sparseprop==0.1.14
	touch $@

wheel:
	@PYTHON=$(PYTHON) sh .ci/wheel

try-wheel: wheel
	@PYTHON=$(PYTHON) TORCH="$(or $(TORCH),torch)" sh .ci/wheel try

.venv/installed: setup.cfg pyproject.toml .ci/install .ci/building.py $(wildcard sparsify/_src/native/*.[ch])
	@PYTHON=$(PYTHON) sh .ci/install

clean:
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
