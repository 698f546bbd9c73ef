# `make mnist` and `make test` work on a fresh machine: they make .venv on first use (see .ci/install).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help mnist test interruptions lint bench clean
help:
	@echo "make mnist      train a sparse network on MNIST (real data: DATA=folder or \$$SPARSIFY_DATA)"
	@echo "make test       the test suite"
	@echo "make interruptions  fail at every line, operator and allocation of an evolution (hours)"
	@echo "make lint       ruff and mypy"
	@echo "make bench      time layers, training steps and evolution beside other libraries"
	@echo "make clean      remove .venv and all that was built"

mnist: .venv/installed
	$(BIN)/python examples/mnist.py $(if $(DATA),--data $(DATA))

test: .venv/installed
	$(BIN)/python -m pytest

interruptions: .venv/installed
	$(BIN)/python -m pytest tests/test_interruptions.py -m slow -s

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python examples/benchmark.py

.venv/installed: setup.cfg pyproject.toml .ci/install $(wildcard sparsify/_src/native/*.[ch])
	@PYTHON=$(PYTHON) sh .ci/install

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
