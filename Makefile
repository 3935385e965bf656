# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test explore check bench install clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo/run.py

test: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadgroup

# Property tests on examples that no run has seen; `make test` draws the same ones every time.
explore: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadgroup -m hypothesis --hypothesis-profile explore

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_ctc_distill.py

install: $(VENV)/.installed

# The constraints keep the tested torch; a bare install would take the newest one.
$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
